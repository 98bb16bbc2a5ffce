"""What the pages answer with: files and HTML with the headers that keep a browser safe, and errors in words."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from reviewclf.errors import GateError, RegistryError
from reviewclf.pages.render import render_error
from reviewclf.pages.texts import Texts, choose_language

logger = logging.getLogger(__name__)

LANGUAGE_COOKIE = "reviewclf_language"

# Everything comes from files beside this module; only Airflow itself may frame the page.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'self'"
)
# Reports hold words of reviews and come from a server that others write to: no scripts, an origin of their own.
REPORT_POLICY = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
# Data docs do need their scripts; in an origin of their own they reach neither Airflow's session nor its API.
DOCS_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'self' 'unsafe-inline' https:; "
    "style-src 'self' 'unsafe-inline' https:; img-src 'self' data: https:; font-src 'self' data: https:; connect-src 'none'; "
    "frame-ancestors 'self'"
)


def file(folder: Path, path: str, *, public: bool = False) -> Response:
    """A file below a folder; whatever leads out of it does not exist."""
    try:
        found, info = StaticFiles(directory=folder, check_dir=False).lookup_path(path)
    except (OSError, ValueError):  # a name that no file can have
        found, info = "", None
    if info is None or not stat.S_ISREG(info.st_mode):
        raise HTTPException(404, "there is no such page in the data docs")
    # Fonts are asked for by pages without an origin.
    return FileResponse(found, headers={**_headers(DOCS_POLICY), **({"Access-Control-Allow-Origin": "*"} if public else {})})


def html(content: str, policy: str, *, status: int = 200) -> HTMLResponse:
    """A page that is held to one of the policies."""
    return HTMLResponse(content, status_code=status, headers=_headers(policy))


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Vary": "Cookie, Accept-Language",
    }


def texts_for(request: Request) -> Texts:
    """The words in the language of whoever asks."""
    chosen = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
    return Texts(choose_language(chosen, request.headers.get("accept-language")))


def base_of(request: Request) -> str:
    """Path under which the application is mounted."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _wants_page(request: Request) -> bool:
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def _problem(request: Request, status: int, said: str, **page: Any) -> Response:
    """An error as a page for a browser (see :func:`render_error`), as JSON for a script."""
    if not _wants_page(request):
        return JSONResponse({"error": said}, status_code=status, headers=_headers(PAGE_POLICY))
    content = {"title": f"{status}", "message": said, **page}
    return html(render_error(texts=texts_for(request), base=base_of(request), **content), PAGE_POLICY, status=status)


def refused(request: Request, error: Any, *, login: Callable[[str], str]) -> Response:
    """An ``HTTPException``: whoever is not logged in is led to the login page, and back."""
    texts = texts_for(request)
    if error.status_code == 401 and _wants_page(request):
        query = f"?{request.query_params}" if request.query_params else ""
        return RedirectResponse(login(f"{request.url.path}{query}"), status_code=302)
    said = texts("error_session") if error.status_code == 401 else str(error.detail)
    page = {"title": texts("forbidden"), "message": texts("error_forbidden")} if error.status_code == 403 else {}
    return _problem(request, error.status_code, said, **page)


def malformed(request: Request, error: Any) -> Response:
    """A ``RequestValidationError``: which part of the request is wrong."""
    said = "; ".join(f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors())
    return _problem(request, 422, said)


def failed(request: Request, error: Exception) -> Response:
    """A user's mistake, the gate's refusal, or an MLflow that is away, as an answer instead of a traceback."""
    texts = texts_for(request)
    status = 409 if isinstance(error, GateError) else 502 if isinstance(error, RegistryError) else 500
    logger.warning("%s %s: %s", request.method, request.url.path, error)
    message = texts("error_mlflow") if isinstance(error, RegistryError) else str(error)
    return _problem(request, status, str(error), title=texts("error_title"), message=message, detail=str(error), again=True)
