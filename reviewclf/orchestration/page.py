"""The promotion page inside Airflow: mounted under ``/reviewclf``, framed under the menu entry «Promotion».

All of it lies in :mod:`reviewclf.pages`; this says who is asking and what they may do, by Airflow's own login and permissions:
who may read the DAG reviews_retrain sees the page, who may trigger reviews_promote or reviews_rollback may do that here too.
"""

# No postponed annotations here: FastAPI looks for the types of a dependency that is made inside a function.
import asyncio
import json
import logging
import os
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

PREFIX = "/reviewclf"
ASSET = "review_classifier"
SEEN_WITH, PROMOTED_WITH, ROLLED_BACK_WITH = "reviews_retrain", "reviews_promote", "reviews_rollback"


log = logging.getLogger("reviewclf.page")


def _application() -> Any:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
    from airflow.configuration import conf
    from fastapi import HTTPException, Request

    from reviewclf.pages.app import create_app
    from reviewclf.pages.person import Person
    from reviewclf.pages.state import State
    from reviewclf.settings import load_settings

    # A person waits for the answer: MLflow's own patience, seven tries with growing pauses, is that of a nightly job.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

    may_see = requires_access_dag("GET", param_dag_id=SEEN_WITH)
    may_promote = requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=PROMOTED_WITH)
    may_roll_back = requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=ROLLED_BACK_WITH)

    def allowed(check: Any, request: Request, user: Any) -> bool:
        try:
            check(request, user)
        except HTTPException:
            return False
        return True

    # Not asynchronous: an auth manager may ask its database, which must not hold up the server's event loop.
    def person(request: Request, user: GetUserDep) -> Person:
        may_see(request, user)
        return Person(
            name=user.get_name(),
            may_promote=allowed(may_promote, request, user),
            may_roll_back=allowed(may_roll_back, request, user),
        )

    return create_app(
        State(load_settings()),
        person=person,
        login=lambda back: get_auth_manager().get_url_login(next_url=back),
        origin=lambda: str(conf.get("api", "base_url", fallback="")),
        announce=_announce,
    )


def _announce(change: Any) -> None:
    """Let people know, and the DAGs that wait for another champion, as a promotion by a DAG does; note it in the audit log.

    The champion has changed already: what fails here is logged, and does not make the answer a failure.
    """
    from airflow.assets.manager import asset_manager
    from airflow.models import Log
    from airflow.models.asset import AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from reviewclf.orchestration.alerts import send_alert

    extra = {"action": change.action, "champion": change.champion, "previous": change.previous, "reason": change.reason}
    try:
        with create_session(scoped=False) as session:
            session.add(Log(event=f"reviewclf_{change.action}", owner=change.who, extra=json.dumps(extra, ensure_ascii=False)))
            asset = session.scalar(select(AssetModel).where(AssetModel.name == ASSET))
            if asset is not None:
                asset_manager.register_asset_change(
                    asset=asset,
                    timestamp=datetime.now(UTC),
                    extra={**extra, "who": change.who},
                    source_is_api=True,
                    session=session,
                )
    except Exception:
        log.exception("The new champion was not announced to the DAGs that wait for it")
    send_alert("promotion", change.subject, f"By {change.who} on the promotion page: {change.reason}")


class LazyPages:
    """The application, built at its first request: every component and every task loads the plugins, one serves pages."""

    def __init__(self) -> None:
        self._app: Any = None
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        if self._app is None:
            async with self._lock:
                if self._app is None:
                    self._app = await asyncio.to_thread(_application)
        await self._app(scope, receive, send)


def root_path() -> str:
    """Path in front of everything that Airflow serves, from ``[api] base_url``; empty in most places."""
    from airflow.configuration import conf

    return urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
