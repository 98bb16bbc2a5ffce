"""Registers with Airflow what :mod:`reviewclf.orchestration` adds: alerts, notes, pools, links and the promotion page."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from reviewclf.orchestration import alerts, notes, pools
from reviewclf.orchestration.links import LINKS
from reviewclf.orchestration.page import PREFIX, LazyPages, root_path


class ReviewclfPlugin(AirflowPlugin):
    """Everything that this project adds to Airflow."""

    name = "reviewclf"
    listeners: ClassVar[list[Any]] = [alerts, notes, pools]
    operator_extra_links: ClassVar[list[Any]] = LINKS
    fastapi_apps: ClassVar[list[Any]] = [{"name": "reviewclf", "url_prefix": PREFIX, "app": LazyPages()}]
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Promotion",
            "href": f"{root_path()}{PREFIX}/promotion",
            "url_route": "promotion",
            "destination": "nav",
            "nav_top_level": True,
            "icon": f"{root_path()}{PREFIX}/static/icon.svg",
            "icon_dark_mode": f"{root_path()}{PREFIX}/static/icon-dark.svg",
        }
    ]
