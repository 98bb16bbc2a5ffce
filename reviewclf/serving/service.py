"""What one process of the server holds, and how it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Receive, Scope

from reviewclf.registry import CHAMPION
from reviewclf.registry.deployment import Deployments
from reviewclf.serving.cache import ModelCache
from reviewclf.serving.edge import header_of, trace_of
from reviewclf.serving.follower import Follower
from reviewclf.serving.keys import ApiKeys
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.model import ServedModel
from reviewclf.serving.predictor import Predictor
from reviewclf.serving.problems import Problem, unavailable
from reviewclf.serving.schema import Figure, GateVerdict, ModelResponse, RefusedVersion, RegistryState, ShadowState
from reviewclf.serving.shadow import Shadow
from reviewclf.settings import Settings

_TAGS = "reviewclf."
_BODY_SECONDS = 30.0
# Longer than it takes to load a model, and than a registry that is away is waited for.
_FIRST_MODEL_SECONDS = 60.0


class Service:
    """What the addresses of one process share, not started yet.

    Parameters
    ----------
    settings : Settings
        Limits, keys, and where models are kept.
    registry : Deployments
        Where aliases and models come from.

    Attributes
    ----------
    stopping : bool
        The server is about to stop, and takes no new requests.

    Raises
    ------
    SettingsError
        A key cannot be used.
    """

    def __init__(self, settings: Settings, registry: Deployments) -> None:
        serving = self.settings = settings.serving
        self.keys = ApiKeys(serving.api_keys)
        self.metrics = Metrics()
        self.predictor = Predictor.from_settings(serving, self.metrics)
        cache = ModelCache(settings.home.expanduser().resolve() / "serving")
        self.follower = Follower(registry, cache, self.metrics, serving)
        self.shadow = Shadow(serving, self.metrics, self.predictor.batcher) if serving.shadow_share > 0 else None
        self.stopping = False

    async def start(self) -> None:
        """Begin to follow the registry, and wait for the first model, so that no request finds a process without one."""
        await self.predictor.batcher.start()
        if self.shadow is not None:
            self.shadow.start()
        await asyncio.to_thread(self.follower.start, _FIRST_MODEL_SECONDS)

    def drain(self) -> None:
        """Refuse new requests from now on, and wait for no model."""
        self.stopping = True
        self.follower.stop(0)

    async def stop(self) -> None:
        """End what :meth:`start` began."""
        await asyncio.to_thread(self.follower.stop)
        if self.shadow is not None:
            self.shadow.stop()
        await self.predictor.batcher.stop()

    @property
    def model(self) -> ServedModel:
        """The champion.

        Raises
        ------
        Problem
            503: there is none yet, or the server is about to stop.
        """
        if self.stopping:
            raise unavailable("draining", "the server is stopping; ask another one, or this one again later", retry_after=1)
        model = self.follower.champion
        if model is None:
            raise unavailable(
                "no_model", f"there is no model yet: {self.follower.problem}", retry_after=self.settings.poll_seconds
            )
        return model

    def check_key(self, scope: Scope) -> None:
        """Raise :class:`Problem`, 401, at a request without a key, where keys are needed."""
        if not self.keys:
            return
        scheme, _, key = (header_of(scope, b"authorization") or "").partition(" ")
        if not self.keys.allow(key.strip() if scheme.lower() == "bearer" else header_of(scope, b"x-api-key")):
            said = "give a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise Problem(401, "unauthorized", said, {"WWW-Authenticate": "Bearer"})

    async def predict(self, scope: Scope, receive: Receive) -> bytes:
        """The JSON that answers ``POST /predict``; raises :class:`Problem` in place of it."""
        # Before the body: a server that cannot answer should not read megabytes.
        model = self.model
        answer = await self.predictor.predict(model, await read_body(scope, receive, self.settings.max_body_bytes))
        trace_of(scope).fields.update(
            texts=len(answer.texts),
            model_version=model.version,
            **({"reviews": answer.texts} if self.settings.log_texts else {}),
        )
        if self.shadow is not None:
            self.shadow.offer(model, self.follower.challenger, answer.texts, answer.labels)
        return answer.content

    def describe(self) -> ModelResponse:
        """Answer ``GET /model``."""
        follower, model = self.follower, self.model
        tags = {name.removeprefix(_TAGS): value for name, value in model.info.tags.items() if name.startswith(_TAGS)}
        refused = follower.refused
        rows = model.figures.get("gold/rows")
        return ModelResponse(
            model_version=model.version,
            alias=CHAMPION,
            candidate=tags.get("candidate"),
            kind=model.kind,
            classes=model.classifier.classes,
            dataset=tags.get("dataset"),
            gate=GateVerdict(verdict=tags.get("gate"), reason=tags.get("gate_reason"), report=tags.get("gate_report")),
            registered_at=model.info.registered_at,
            promoted_at=tags.get("promoted_at"),
            promoted_by=tags.get("promoted_by"),
            promotion_reason=tags.get("promotion_reason"),
            loaded_at=model.loaded_at,
            loaded_from=model.loaded_from,
            figures=_figures(model.figures),
            gold_rows=None if rows is None else int(rows),
            description=model.info.description,
            registry=RegistryState(
                reachable=bool(follower.reachable), last_contact=follower.last_contact, problem=follower.problem
            ),
            refused=refused
            and RefusedVersion(
                version=refused.version.version,
                reason=refused.reason,
                at=refused.at,
                attempts=refused.attempts,
                next_attempt_in_seconds=round(follower.seconds_to_retry(), 1),
            ),
            shadow=self._shadow_state(model),
        )

    def _shadow_state(self, model: ServedModel) -> ShadowState | None:
        challenger = self.follower.challenger
        if self.shadow is None or challenger is None:
            return None
        return self.shadow.compare(model.version, challenger.version)


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
    body = bytearray()
    more = True
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "client_disconnected", "the connection ended before the body did")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        late = f"the body did not arrive within {_BODY_SECONDS:.0f} seconds"
        raise Problem(408, "body_timeout", late, {"Connection": "close"}) from error
    return bytes(body)


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


def _figures(metrics: Mapping[str, float]) -> dict[str, Figure]:
    """Metrics with their intervals, which are logged beside them as ``_low`` and ``_high``."""
    return {
        name: Figure(value=value, low=metrics.get(f"{name}_low"), high=metrics.get(f"{name}_high"))
        for name, value in metrics.items()
        if not (name.endswith(("_low", "_high")) and name.rpartition("_")[0] in metrics)
    }
