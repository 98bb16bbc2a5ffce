"""The HTTP interface: what each address answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from reviewclf import __version__
from reviewclf.registry import CHAMPION
from reviewclf.serving.batching import Batcher
from reviewclf.serving.edge import Edge, fault_response, problem_response
from reviewclf.serving.fleet import Fleet
from reviewclf.serving.follower import Follower
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.predicting import Predictor
from reviewclf.serving.problems import ErrorResponse, Problem, unavailable
from reviewclf.serving.schema import (
    Figure,
    GateVerdict,
    Health,
    ModelResponse,
    PredictResponse,
    RefusedVersion,
    RegistryState,
    ShadowState,
    request_schema,
)
from reviewclf.serving.served import ServedModel
from reviewclf.serving.shadow import Shadow
from reviewclf.settings import ServingSettings

_PATHS = frozenset({"/predict", "/model", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"})
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
_TAGS = "reviewclf."


class Service(Predictor):
    """What the addresses share.

    Parameters
    ----------
    follower : Follower
        Brings the models.
    batcher : Batcher
        Runs them.
    shadow : Shadow or None
        Compares the challenger, where that is wanted.
    metrics : Metrics
        Told everything.
    settings : ServingSettings
        Limits and keys.
    fleet : Fleet, optional
        The processes beside this one.
    """

    def __init__(
        self,
        follower: Follower,
        batcher: Batcher,
        shadow: Shadow | None,
        metrics: Metrics,
        settings: ServingSettings,
        fleet: Fleet | None = None,
    ) -> None:
        super().__init__(batcher, metrics, settings)
        self.follower = follower
        self.batcher = batcher
        self.shadow = shadow
        self.fleet = fleet

    @property
    def model(self) -> ServedModel:
        """The champion.

        Raises
        ------
        Problem
            503: there is none yet, or the server is about to stop.
        """
        if self.draining:
            raise unavailable("draining", "the server is stopping; ask another one, or this one again later", retry_after=1)
        model = self.follower.champion
        if model is None:
            raise unavailable(
                "no_model", f"there is no model yet: {self.follower.problem}", retry_after=self.settings.poll_seconds
            )
        return model

    def answered(self, model: Any, texts: list[str], labels: list[str]) -> None:
        """Offer them to the shadow."""
        if self.shadow is not None:
            self.shadow.offer(model, self.follower.challenger, texts, labels)

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
            shadow=self._shadow_state(),
        )

    def _shadow_state(self) -> ShadowState | None:
        challenger = self.follower.challenger
        if self.shadow is None or challenger is None:
            return None
        seen = self.shadow.comparison
        if seen is not None and seen.challenger != challenger.version:
            seen = None
        return ShadowState(
            model_version=challenger.version,
            compared=seen.compared if seen else 0,
            disagreements=seen.disagreements if seen else 0,
            disagreement_rate=seen.rate if seen else None,
        )


def create_app(service: Service) -> FastAPI:
    """The application; it starts and stops what `service` holds, and is wrapped into :class:`Edge` as ``app.state.edge``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        if service.shadow is not None:
            service.shadow.start()
        if service.fleet is not None:
            service.fleet.start()
        service.follower.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.follower.stop)
            if service.fleet is not None:
                await service.fleet.stop()
            if service.shadow is not None:
                await service.shadow.stop()
            await service.batcher.stop()

    app = FastAPI(
        title="reviewclf",
        version=__version__,
        description="Product category of Russian marketplace reviews, answered by the version that the alias `champion` names.",
        lifespan=lifespan,
        # Both pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # both are answered, see the edge
        exception_handlers={Problem: _on_problem, HTTPException: _on_http_exception, Exception: _on_fault},
    )
    guarded = _guards(service)
    unauthorized: dict[int | str, dict[str, Any]] = {401: _error("No key, or a wrong one")} if guarded else {}

    @app.post(
        "/predict",
        summary="Classify one or many reviews",
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses={
            **unauthorized,
            408: _error("The body did not arrive in time"),
            413: _error("The body is too large"),
            415: _error("The body is no JSON in UTF-8, by its headers"),
            422: _error("No JSON, another shape, too many texts, or one that is too long"),
            503: _error("No model yet, too many requests wait, or the server is stopping", "Retry-After"),
        },
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(service.settings)}}}
        },
        dependencies=guarded,
    )
    async def predict(request: Request) -> Response:
        return Response(await service.predict(request.scope, request.receive), media_type="application/json")

    @app.get(
        "/model",
        summary="What is being served",
        response_model=ModelResponse,
        responses={**unauthorized, 503: _error("No model yet", "Retry-After")},
        dependencies=guarded,
    )
    async def model() -> Response:
        return Response(service.describe().model_dump_json(), media_type="application/json")

    @app.get("/health/live", summary="Whether the process lives", response_model=Health)
    async def live() -> Response:
        return Response('{"status":"ok"}', media_type="application/json")

    not_ready: dict[int | str, dict[str, Any]] = {503: _error("Not now; the message says why", "Retry-After")}

    @app.get("/health", summary="The same as /health/ready", response_model=Health, responses=not_ready)
    @app.get("/health/ready", summary="Whether requests are answered", response_model=Health, responses=not_ready)
    async def ready() -> Response:
        found = service.model
        note = service.follower.problem
        health = Health(status="ok", reason=f"version {found.version}; {note}" if note else None)
        return Response(health.model_dump_json(exclude_none=True), media_type="application/json")

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        others = await service.fleet.figures() if service.fleet is not None else []
        return Response(service.metrics.render(others), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.state.service = service
    app.state.edge = Edge(
        app,
        metrics=service.metrics,
        paths=_PATHS,
        # What answers: asked before any routing. The route above describes it, and has the guards that it checks itself.
        direct={("POST", "/predict"): service.predict},
        log_texts=service.settings.log_texts,
    )
    return app


def _guards(service: Service) -> list[Any]:
    """What a request has to pass: two that describe themselves in OpenAPI, and the one that decides."""
    if not service.keys:
        return []

    async def guard(request: Request) -> None:
        service.check_key(request.scope)

    bearer = HTTPBearer(auto_error=False, description="A key of REVIEWCLF_SERVING__API_KEYS")
    header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, for clients that set no Authorization")
    return [Security(bearer), Security(header), Depends(guard)]


def _error(description: str, *headers: str) -> dict[str, Any]:
    """An answer of the OpenAPI description."""
    described = {name: {"schema": {"type": "string"}, "description": "Seconds"} for name in headers}
    return {"model": ErrorResponse, "description": description, **({"headers": described} if described else {})}


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - registered for nothing else
    return problem_response(request.scope, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    code = _STATUS_CODES.get(error.status_code, "http_error")
    return problem_response(request.scope, Problem(error.status_code, code, str(error.detail), error.headers))


async def _on_fault(request: Request, error: Exception) -> Response:
    return fault_response(request.scope)


def _figures(metrics: Mapping[str, float]) -> dict[str, Figure]:
    """Metrics with their intervals, which are logged beside them as ``_low`` and ``_high``."""
    return {
        name: Figure(value=value, low=metrics.get(f"{name}_low"), high=metrics.get(f"{name}_high"))
        for name, value in metrics.items()
        if not (name.endswith(("_low", "_high")) and name.rpartition("_")[0] in metrics)
    }
