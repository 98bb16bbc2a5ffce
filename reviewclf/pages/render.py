"""The pages as HTML: templates filled with what :mod:`reviewclf.pages.view` makes of the figures."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reviewclf.pages import view
from reviewclf.pages.person import Person
from reviewclf.pages.texts import LANGUAGES, Texts
from reviewclf.promotion.overview import Winner
from reviewclf.registry import CHALLENGER, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from reviewclf.pages.state import Look


def render(look: Look, *, texts: Texts, person: Person, base: str, winner: Winner | None = None, page: int = 1) -> str:
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
    content: dict[str, Any] = {
        **vars(look),
        "champion": overview.champion,
        "challenger": overview.challenger,
        "previous": overview.previous,
        "person": person,
        "headline": view.headline(overview, look.challenged, look.health, texts),
        "metrics": [] if other is None else view.metric_rows(overview.champion or other, other, texts),
        "rules": [] if comparison is None or comparison.gate is None else view.rule_rows(comparison.gate, texts),
        "matrices": _matrices(look, texts),
        "answers": None if comparison is None else view.answer_page(comparison, look.gold, winner=winner, page=page),
        "link": lambda **changes: _query(other, winner, changes),
    }
    return _fill("promotion.html", texts, base, content)


def render_error(*, texts: Texts, base: str, title: str, message: str, detail: str = "", again: bool = False) -> str:
    """A page that says what is wrong and what that means."""
    return _fill("error.html", texts, base, {"heading": title, "message": message, "detail": detail, "again": again})


def _matrices(look: Look, texts: Texts) -> list[tuple[str, str, list[view.Row]]]:
    """Name of the role, version and rows of each matrix that there is."""
    comparison, other, champion = look.comparison, look.other, look.overview.champion
    if comparison is None or other is None:
        return []
    shown = [(other, comparison.evaluation)]
    if champion is not None:
        shown.insert(0, (champion, comparison.champion_evaluation))
    return [
        (_role(version.aliases, texts), version.version, view.matrix_rows(evaluation, texts))
        for version, evaluation in shown
        if evaluation is not None
    ]


def _role(aliases: tuple[str, ...], texts: Texts) -> str:
    """What a version is in the registry, in words."""
    return texts(next((alias for alias in (CHAMPION, CHALLENGER, PREVIOUS) if alias in aliases), "candidate"))


def _query(other: Any, winner: str | None, changes: dict[str, Any]) -> str:
    """The query of this page with something changed; what is None is left out."""
    now = {"version": None if other is None else other.version, "winner": winner, "page": None}
    return "?" + urlencode({name: value for name, value in {**now, **changes}.items() if value is not None})


def _fill(template: str, texts: Texts, base: str, content: dict[str, Any]) -> str:
    common = {"t": texts, "base": base, "languages": LANGUAGES, "role": lambda aliases: _role(aliases, texts)}
    return _environment().get_template(template).render({**common, **content})


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


def _when(moment: datetime | str) -> Markup:
    """A time as an element that the page's script turns into the reader's own time; UTC without it."""
    try:
        when = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
    except ValueError:
        return escape(moment)
    return Markup('<time datetime="{}">{} UTC</time>').format(when.isoformat(), when.strftime("%Y-%m-%d %H:%M"))
