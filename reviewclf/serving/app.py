"""The HTTP interface: what each address answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import request_response

from reviewclf import __version__
from reviewclf.serving.edge import Edge, problem_response
from reviewclf.serving.problems import ErrorResponse, Problem
from reviewclf.serving.schema import Health, ModelResponse, PredictResponse, request_schema
from reviewclf.serving.service import Service

_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
_JSON = "application/json"


class _Route(APIRoute):
    """FastAPI describes it, and Starlette calls its function: there is nothing for FastAPI to read, check or write."""

    def __init__(self, path: str, endpoint: Callable[[Request], Any], **described: Any) -> None:
        super().__init__(path, endpoint, **described)
        self.app = request_response(endpoint)


def create_app(service: Service) -> FastAPI:
    """The application; it starts and stops `service`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="reviewclf",
        version=__version__,
        description="Product category of Russian marketplace reviews, answered by the version that the alias `champion` names.",
        lifespan=lifespan,
        # Both pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # both are answered, see the edge
        exception_handlers={Problem: _on_problem, HTTPException: _on_http_exception},
    )
    app.add_middleware(Edge, metrics=service.metrics, stopping=lambda: service.stopping, log_texts=service.settings.log_texts)
    app.router.route_class = _Route
    guarded = _keys() if service.keys else []
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
        openapi_extra={"requestBody": {"required": True, "content": {_JSON: {"schema": request_schema(service.settings)}}}},
        dependencies=guarded,
    )
    async def predict(request: Request) -> Response:
        service.check_key(request.scope)
        return Response(await service.predict(request.scope, request.receive), media_type=_JSON)

    @app.get(
        "/model",
        summary="What is being served",
        response_model=ModelResponse,
        responses={**unauthorized, 503: _error("No model yet", "Retry-After")},
        dependencies=guarded,
    )
    async def model(request: Request) -> Response:
        service.check_key(request.scope)
        return Response(service.describe().model_dump_json(), media_type=_JSON)

    @app.get("/health/live", summary="Whether the process lives", response_model=Health)
    async def live(_: Request) -> Response:
        return Response('{"status":"ok"}', media_type=_JSON)

    not_ready: dict[int | str, dict[str, Any]] = {503: _error("Not now; the message says why", "Retry-After")}

    @app.get("/health", summary="The same as /health/ready", response_model=Health, responses=not_ready)
    @app.get("/health/ready", summary="Whether requests are answered", response_model=Health, responses=not_ready)
    async def ready(_: Request) -> Response:
        found = service.model
        note = service.follower.problem
        health = Health(status="ok", reason=f"version {found.version}; {note}" if note else None)
        return Response(health.model_dump_json(exclude_none=True), media_type=_JSON)

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics(_: Request) -> Response:
        return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return app


def _keys() -> list[Any]:
    """The ways to give a key, for the OpenAPI description."""
    bearer = HTTPBearer(auto_error=False, description="A key of REVIEWCLF_SERVING__API_KEYS")
    header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, for clients that set no Authorization")
    return [Security(bearer), Security(header)]


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
