"""The pages as a FastAPI application that anything can mount which knows who is asking: Airflow's plugin does.

Whoever mounts it says who the person is and what they may do; nothing here decides that.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, StringConstraints

from reviewclf.errors import ReviewclfError
from reviewclf.pages import answers
from reviewclf.pages.person import Person
from reviewclf.pages.render import render
from reviewclf.pages.state import State
from reviewclf.pages.texts import Texts
from reviewclf.promotion.history import Promotion
from reviewclf.promotion.overview import Winner

logger = logging.getLogger(__name__)

# Browsers send it only from a script of the same origin, or after a preflight that nobody here answers.
ACTION_HEADER = "X-Reviewclf-Action"

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Change:
    """What a person has done here: the champion is another one now.

    Attributes
    ----------
    action : str
        ``promote`` or ``roll_back``.
    champion, previous : str or None
        Versions after it.
    subject : str
        One line for people, in English.
    """

    action: Literal["promote", "roll_back"]
    champion: str | None
    previous: str | None
    who: str
    reason: str
    subject: str


def who_asks() -> Person:
    """Stands for the dependency that :func:`create_app` was given."""
    raise NotImplementedError


Who = Annotated[Person, Depends(who_asks)]


class _Action(BaseModel, extra="forbid"):
    """What the person decided, and which champion they saw when they did."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    champion: str | None = None


class _Promote(_Action):
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


def create_app(
    state: State,
    *,
    person: Callable[..., Person],
    login: Callable[[str], str],
    origin: Callable[[], str] = str,
    announce: Callable[[Change], None] | None = None,
) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    state : State
        What it shows, and where actions go.
    person : callable
        FastAPI dependency that answers with the person, or raises ``HTTPException`` 401 (not logged in) or 403 (may not see
        the pages).
    login : callable
        Address of the login page that leads back to the address it is given.
    origin : callable, optional
        Public origin of the server (``https://host``) where it differs from what requests name, as behind a proxy.
    announce : callable, optional
        Told of every change after it has happened.
    """
    app = FastAPI(title="reviewclf", openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.add_exception_handler(HTTPException, partial(answers.refused, login=login))
    app.add_exception_handler(RequestValidationError, answers.malformed)
    app.add_exception_handler(ReviewclfError, answers.failed)
    app.dependency_overrides[who_asks] = person
    app.state.origin = origin
    app.include_router(_pages(state))
    app.include_router(_actions(state, announce))
    return app


def _pages(state: State) -> APIRouter:
    router = APIRouter()
    signed_in = [Depends(who_asks)]

    @router.get("/promotion", response_class=HTMLResponse)
    def promotion(
        request: Request,
        who: Who,
        version: Annotated[str | None, Query(pattern=r"^[0-9]{1,9}$")] = None,
        winner: Winner | None = None,
        page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    ) -> Response:
        """Show the state of the registry, and one version beside the champion."""
        texts, base = answers.texts_for(request), answers.base_of(request)
        content = render(state.look(version), texts=texts, person=who, base=base, winner=winner, page=page)
        return answers.html(content, answers.PAGE_POLICY)

    @router.get("/gate/{version}", dependencies=signed_in)
    def gate_report(version: str) -> Response:
        """Show the gate report of a version as it was written."""
        content = state.gate_report(version)
        if content is None:
            raise HTTPException(404, f"version {version} has no gate report")
        return answers.html(content, answers.REPORT_POLICY)

    @router.get("/runs/{run_id}", dependencies=signed_in)
    def run(run_id: str) -> Response:
        """Go to a run in MLflow."""
        if not _RUN_ID.fullmatch(run_id):
            raise HTTPException(404, "no such run")
        return RedirectResponse(state.run_address(run_id))

    @router.get("/runs/of/{key}", dependencies=signed_in)
    def run_of(key: str) -> Response:
        """Go to the run in MLflow that was made for a manifest's digest."""
        if not _RUN_ID.fullmatch(key) or (run_id := state.run_of_key(key)) is None:
            raise HTTPException(404, "MLflow holds no run of this task")
        return RedirectResponse(state.run_address(run_id))

    # The styles and pictures of data docs say nothing about data, and a page with an origin of its own asks without cookies.
    @router.get("/docs/static/{path:path}")
    def docs_static(path: str) -> Response:
        """Styles and pictures of the data docs."""
        return answers.file(state.docs / "static", path, public=True)

    @router.get("/docs/{path:path}", dependencies=signed_in)
    def docs(path: str) -> Response:
        """Show the data docs."""
        return answers.file(state.docs, path or "index.html")

    return router


def _actions(state: State, announce: Callable[[Change], None] | None) -> APIRouter:
    router = APIRouter(dependencies=[Depends(_not_forged)])

    def done(texts: Texts, action: Literal["promote", "roll_back"], who: Person, reason: str, moved: Promotion) -> Any:
        logger.info("%s by %s: champion is version %s, was %s (%s)", action, who.name, moved.champion, moved.previous, reason)
        if moved.changed and announce is not None:
            subject = Texts("en")(f"done_{action}", version=moved.champion)
            announce(Change(action, moved.champion, moved.previous, who.name, reason, subject))
        message = texts(f"done_{action}" if moved.changed else "done_unchanged", version=moved.champion)
        return {"message": message, "champion": moved.champion, "previous": moved.previous}

    @router.post("/promotion/promote")
    def promote(request: Request, action: _Promote, who: Who) -> Any:
        """Make a version the champion."""
        texts = answers.texts_for(request)
        _check(who.may_promote, texts("may_not_promote"), state, action, texts)
        moved = state.promote(action.version, reason=action.reason, who=who.name, against=action.champion)
        return done(texts, "promote", who, action.reason, moved)

    @router.post("/promotion/rollback")
    def roll_back(request: Request, action: _Action, who: Who) -> Any:
        """Make the previous version the champion again."""
        texts = answers.texts_for(request)
        _check(who.may_roll_back, texts("may_not_roll_back"), state, action, texts)
        moved = state.roll_back(reason=action.reason, who=who.name)
        return done(texts, "roll_back", who, action.reason, moved)

    return router


def _not_forged(request: Request) -> None:
    """Refuse what another site could have made the browser send.

    The session lives in a cookie, which the browser adds to every request to this host, whoever caused it. That cookie is
    SameSite=Lax, but "site" knows no ports: a page of another server on this host, such as MLflow's, is the same site. So an
    action needs what only a script of this very origin can send: a header that forms cannot set and that other origins may
    not send without asking first, JSON, and an Origin (or Sec-Fetch-Site) that the browser, not the page, writes.
    Programs that bring a token in Authorization send no cookies and cannot be tricked; they need the header alone.
    """
    if request.headers.get(ACTION_HEADER) != "1":
        raise HTTPException(403, f"actions need the header {ACTION_HEADER}: 1")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "actions are sent as application/json")
    sent = request.headers.get("origin")
    if sent is None and request.headers.get("authorization", "").lower().startswith("bearer "):
        return
    is_same_site = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    here = {request.headers.get("host", "").lower(), urlsplit(request.app.state.origin()).netloc.lower()} - {""}
    if not is_same_site or sent is None or urlsplit(sent).netloc.lower() not in here:
        raise HTTPException(403, "this action was not asked for by the page itself")


def _check(may: bool, refusal: str, state: State, action: _Action, texts: Texts) -> None:
    """Refuse who may not do it, and a decision that was made looking at another champion than there is now."""
    if not may:
        raise HTTPException(403, refusal)
    now = state.champion()
    if action.champion != now:
        raise HTTPException(409, texts("error_moved", version=now or texts("nothing")))
