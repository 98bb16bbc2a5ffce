"""Bodies of requests and answers. They are read and written without detours: this is on the path of every request."""

from __future__ import annotations

import codecs
import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reviewclf.serving.problems import Problem
from reviewclf.settings import ServingSettings

_MAX_SHOWN = 3


class PredictRequest(BaseModel):
    """One review as `text`, or several as `texts`. The model cleans them itself."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "oneOf": [{"required": ["texts"]}, {"required": ["text"]}],
            "example": {"texts": ["Платье село отлично, но швы кривые"]},
        },
    )

    # One of the two is given.
    texts: list[str] = Field(default_factory=list, description="Reviews as they came")
    text: str = Field("", description="One review, in place of `texts`")
    abstain: bool = Field(False, description="Answer «не уверен» where the probability is below the class's threshold")
    probabilities: bool = Field(False, description="Answer the probabilities of all categories too")


class Prediction(BaseModel):
    """Answer for one review: likeliest label and its probability; those of all categories where they were asked for."""

    label: str
    confidence: float
    probabilities: dict[str, float] | None = None


class PredictResponse(BaseModel):
    """Answers in the order of the texts, all from one version of the model."""

    model_version: str
    predictions: list[Prediction]


class Figure(BaseModel):
    """A measured value, with its 95% interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class GateVerdict(BaseModel):
    """What the gate said when the version was registered; None where it said nothing."""

    verdict: str | None
    reason: str | None
    report: str | None


class RegistryState(BaseModel):
    """Whether the registry answers. While it does not, the last champion goes on."""

    reachable: bool
    last_contact: datetime | None
    problem: str | None


class RefusedVersion(BaseModel):
    """A version that the alias names but that is not served, and why."""

    version: str
    reason: str
    at: datetime
    attempts: int
    next_attempt_in_seconds: float


class ShadowState(BaseModel):
    """The challenger that answers a share of the requests unseen, and how often it disagrees with the champion."""

    model_version: str
    compared: int
    disagreements: int
    disagreement_rate: float | None


class ModelResponse(BaseModel):
    """What is being served, and what the registry says about it."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    alias: str
    candidate: str | None
    kind: str
    classes: list[str]
    dataset: str | None
    gate: GateVerdict
    registered_at: datetime
    promoted_at: str | None
    promoted_by: str | None
    promotion_reason: str | None
    loaded_at: datetime
    loaded_from: str
    figures: dict[str, Figure]
    gold_rows: int | None
    description: str
    registry: RegistryState
    refused: RefusedVersion | None
    shadow: ShadowState | None


class Health(BaseModel):
    """Whether the process lives, or is ready for requests, and if not, why."""

    status: str
    reason: str | None = None


def request_schema(limits: ServingSettings) -> dict[str, Any]:
    """JSON Schema of :class:`PredictRequest` with the limits that hold here."""
    schema = PredictRequest.model_json_schema()
    texts, text = schema["properties"]["texts"], schema["properties"]["text"]
    for field in (texts, text):
        field.pop("default", None)
    texts |= {"minItems": 1, "maxItems": limits.max_texts}
    texts["items"]["maxLength"] = text["maxLength"] = limits.max_characters
    return schema


def parse_request(body: bytes, limits: ServingSettings) -> tuple[PredictRequest, list[str]]:
    """Read and check a body.

    Returns
    -------
    request, texts
        `texts` is never empty, nor longer than the limit.

    Raises
    ------
    Problem
        422: no UTF-8 or no JSON (lone surrogates are none), another shape, too many texts, or one that is too long.
    """
    try:
        request = PredictRequest.model_validate_json(body.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise Problem(422, *_describe(error, body)) from error
    given = request.model_fields_set
    if ("text" in given) == ("texts" in given):
        raise Problem(422, "invalid_request", 'give either "texts" (a list of strings) or "text" (one string)')
    texts = request.texts if "texts" in given else [request.text]
    if not texts:
        raise Problem(422, "invalid_request", '"texts" is empty; give at least one')
    if len(texts) > limits.max_texts:
        raise Problem(
            422, "too_many_texts", f'"texts" has {len(texts)} entries, at most {limits.max_texts} go into one request; split it'
        )
    for row, text in enumerate(texts):
        if len(text) > limits.max_characters:
            raise Problem(
                422,
                "text_too_long",
                f"text {row} has {len(text)} characters, at most {limits.max_characters} are taken; shorten it",
            )
    return request, texts


def _describe(error: ValidationError, body: bytes) -> tuple[str, str]:
    """Code and message, without the texts themselves: they are nobody's business in a log."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        if not body.strip():
            return "invalid_json", 'the body is empty; send JSON such as {"texts": ["a review"]}'
        encoding = json.detect_encoding(body)
        if not encoding.startswith("utf-8"):
            return "invalid_json", f"the body is in {encoding.upper()}; send the JSON in UTF-8"
        return "invalid_json", f"the body is no JSON in UTF-8: {faults[0]['msg']}"
    if faults[0]["loc"] == ("texts",) and faults[0]["type"] == "list_type":
        return "invalid_request", '"texts" is a list of strings; give one string as "text"'
    shown = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:_MAX_SHOWN]]
    more = f"; and {len(faults) - _MAX_SHOWN} more" if len(faults) > _MAX_SHOWN else ""
    return "invalid_request", "; ".join(shown) + more
