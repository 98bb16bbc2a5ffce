"""What answers ``POST /predict``, in the server's own process and in those beside it: no web framework, as little as can be."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import to_json
from starlette.types import Receive, Scope

from reviewclf.serving.edge import header_of, trace_of
from reviewclf.serving.keys import ApiKeys
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.problems import Problem
from reviewclf.serving.schema import PredictRequest, parse_request
from reviewclf.settings import ServingSettings

if TYPE_CHECKING:
    from reviewclf.serving.batching import Floats, Model
    from reviewclf.training.model import TextClassifier

_BODY_SECONDS = 30.0


class Served(Protocol):
    """A version that answers: see :class:`reviewclf.serving.served.ServedModel`."""

    @property
    def version(self) -> str:
        """Its number."""

    @property
    def classifier(self) -> TextClassifier:
        """What it answers with."""

    @property
    def most_together(self) -> int | None:
        """See :class:`reviewclf.serving.batching.Model`."""

    def answer(self, texts: Sequence[str]) -> Floats:
        """Probabilities, shape (texts, classes)."""


class Queue(Protocol):
    """Where texts wait for their model: see :class:`reviewclf.serving.batching.Batcher`."""

    async def submit(self, model: Model, texts: Sequence[str]) -> Floats:
        """Probabilities of `texts` by `model`."""


class Predictor(ABC):
    """Answers ``POST /predict``.

    Parameters
    ----------
    queue : Queue
        Runs the model.
    metrics : Metrics
        Told everything.
    settings : ServingSettings
        Limits and keys.

    Attributes
    ----------
    draining : bool
        The server is about to stop, and takes no new requests.

    Raises
    ------
    SettingsError
        A key cannot be used.
    """

    def __init__(self, queue: Queue, metrics: Metrics, settings: ServingSettings) -> None:
        self.metrics = metrics
        self.settings = settings
        self.keys = ApiKeys(settings.api_keys)
        self.draining = False
        self._queue = queue

    @property
    @abstractmethod
    def model(self) -> Served:
        """The version that answers.

        Raises
        ------
        Problem
            503: there is none, or the server is about to stop.
        """

    def answered(self, model: Any, texts: list[str], labels: list[str]) -> None:  # noqa: B027 - by default nobody cares
        """Called with each answer."""

    def check_key(self, scope: Scope) -> None:
        """Raise :class:`Problem`, 401, at a request without a key, where keys are needed."""
        if not self.keys:
            return
        scheme, _, key = (header_of(scope, b"authorization") or "").partition(" ")
        if not self.keys.allow(key.strip() if scheme.lower() == "bearer" else header_of(scope, b"x-api-key")):
            raise Problem(
                401,
                "unauthorized",
                "give a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                {"WWW-Authenticate": "Bearer"},
            )

    async def predict(self, scope: Scope, receive: Receive) -> bytes:
        """The JSON of the answer; raises :class:`Problem` in place of it."""
        self.check_key(scope)
        # Before the body: a server that cannot answer should not read megabytes.
        model = self.model
        asked, texts = parse_request(await read_body(scope, receive, self.settings.max_body_bytes), self.settings)
        fields = trace_of(scope).fields
        fields.update(texts=len(texts), model_version=model.version)
        if self.settings.log_texts:
            fields["reviews"] = texts
        self.metrics.request_texts.observe(len(texts))
        answers = await self._queue.submit(model, texts)
        labels = model.classifier.answers(answers)
        confidences = list(map(max, answers.tolist()))  # of a few rows sooner than numpy's
        self.metrics.answered(model.version, labels, confidences)
        self.answered(model, texts, labels)
        shown = model.classifier.answers(answers, abstain=True) if asked.abstain else labels
        return _answer_json(model, asked, shown, confidences, answers)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body of ``POST /predict``.

    Raises
    ------
    Problem
        415: it is no JSON by its headers, or compressed; 413: it is larger than `limit`; 408: it does not arrive.
    """
    _check_content_type(scope)
    too_large = Problem(413, "body_too_large", f"the body is larger than {limit} bytes; split the request")
    length = header_of(scope, b"content-length") or ""
    if length.isdigit() and int(length) > limit:
        raise too_large
    size = 0
    chunks: list[bytes] = []
    more = True
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "client_disconnected", "the connection ended before the body did")
                chunks.append(message.get("body", b""))
                more = message.get("more_body", False)
                size += len(chunks[-1])
                if size > limit:
                    raise too_large
    except TimeoutError as error:
        late = f"the body did not arrive within {_BODY_SECONDS:.0f} seconds"
        raise Problem(408, "body_timeout", late, {"Connection": "close"}) from error
    return b"".join(chunks)


def _check_content_type(scope: Scope) -> None:
    if (header_of(scope, b"content-encoding") or "identity").lower() != "identity":
        raise Problem(415, "unsupported_encoding", "compressed bodies are not read; send the JSON as it is")
    kind, _, parameters = (header_of(scope, b"content-type") or "").lower().partition(";")
    kind = kind.strip()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, "unsupported_media_type", "send the body as `Content-Type: application/json`")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('" ') not in {"utf-8", "utf8", "us-ascii"}:
            raise Problem(415, "unsupported_charset", "send the JSON in UTF-8")


def _answer_json(model: Served, asked: PredictRequest, labels: list[str], confidences: list[float], answers: Floats) -> bytes:
    predictions: list[dict[str, Any]] = [
        {"label": label, "confidence": confidence} for label, confidence in zip(labels, confidences, strict=True)
    ]
    if asked.probabilities:
        classes = model.classifier.classes
        for prediction, row in zip(predictions, answers.tolist(), strict=True):
            prediction["probabilities"] = dict(zip(classes, row, strict=True))
    return to_json({"model_version": model.version, "predictions": predictions})
