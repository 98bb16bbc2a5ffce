"""The pages as HTML: templates filled with what :mod:`reviewclf.pages.view` makes of the figures."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reviewclf.pages import view
from reviewclf.pages.texts import LANGUAGES, Texts

if TYPE_CHECKING:
    from reviewclf.pages.person import Person
    from reviewclf.pages.state import Look


def render(look: Look, *, texts: Texts, person: Person, base: str, winner: view.Winner | None = None, page: int = 1) -> str:
    """The promotion page.

    Parameters
    ----------
    look : Look
        What there is to see.
    person : Person
        Decides which buttons there are.
    base : str
        Path under which the application is mounted.
    winner, page
        Which of the differing answers are shown.
    """
    overview, other, comparison = look.overview, look.other, look.comparison
    champion = overview.champion
    evaluations = () if comparison is None else (comparison.champion_evaluation, comparison.evaluation)
    content: dict[str, Any] = {
        **_common(texts, base),
        "overview": overview,
        "champion": champion,
        "challenger": overview.challenger,
        "previous": overview.previous,
        "other": other,
        "comparison": comparison,
        "challenged": look.challenged,
        "health": look.health,
        "person": person,
        "mlflow": look.mlflow_url,
        "headline": view.headline(overview, look.challenged, look.health, texts),
        "metrics": view.metric_rows(champion or other, other, texts) if other is not None else [],
        "rules": view.rule_rows(comparison.gate, texts) if comparison is not None and comparison.gate is not None else [],
        "matrices": _matrices(look, texts),
        "matrix_labels": view.pick_labels(evaluations),
        "answers": None if comparison is None else view.answer_page(comparison, look.gold, winner=winner, page=page),
        "link": lambda **changes: _query(other, winner, changes),
    }
    return _environment().get_template("promotion.html").render(content)


def render_error(*, texts: Texts, base: str, title: str, message: str, detail: str = "", again: bool = False) -> str:
    """A page that says what is wrong and what that means."""
    content = {**_common(texts, base), "heading": title, "message": message, "detail": detail, "again": again}
    return _environment().get_template("error.html").render(content)


def _matrices(look: Look, texts: Texts) -> list[tuple[str, str, list[view.MatrixRow]]]:
    """Name of the role, version and rows of each matrix that there is."""
    comparison, other, champion = look.comparison, look.other, look.overview.champion
    if comparison is None or other is None:
        return []
    found = []
    if champion is not None and comparison.champion_evaluation is not None:
        found.append((texts("champion"), champion.version, view.matrix_rows(comparison.champion_evaluation, texts)))
    if comparison.evaluation is not None:
        found.append((role(other.aliases, texts), other.version, view.matrix_rows(comparison.evaluation, texts)))
    return found


def role(aliases: tuple[str, ...], texts: Texts) -> str:
    """What a version is in the registry, in words."""
    return next((texts(alias) for alias in ("champion", "challenger", "previous") if alias in aliases), texts("candidate"))


def _common(texts: Texts, base: str) -> dict[str, Any]:
    return {"t": texts, "base": base, "languages": LANGUAGES, "role": lambda aliases: role(aliases, texts)}


def _query(other: Any, winner: str | None, changes: dict[str, Any]) -> str:
    """The query of this page with something changed; what is None is left out."""
    now = {"version": None if other is None else other.version, "winner": winner, "page": None}
    return "?" + urlencode({name: value for name, value in {**now, **changes}.items() if value is not None})


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reviewclf.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(points=view.points, percent=view.percent, when=_when)
    environment.globals.update(bar_width=view.BAR_WIDTH, bar_height=view.BAR_HEIGHT)
    return environment


def _when(moment: datetime | str | None) -> Markup:
    """A time as an element that the page's script turns into the reader's own time; UTC without it."""
    if not moment:
        return Markup("")
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return escape(moment)
    return Markup('<time datetime="{}">{} UTC</time>').format(moment.isoformat(), moment.strftime("%Y-%m-%d %H:%M"))
