"""The words of the pages, Russian and English, from ``texts.yaml``."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml

LANGUAGES = ("en", "ru")
DEFAULT = "en"


class Texts:
    """Words of one language.

    Parameters
    ----------
    language : str
        One of :data:`LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._words = _read()

    def __call__(self, key: str, /, **values: object) -> str:
        """The text under `key`, with its names in braces filled in.

        Raises
        ------
        KeyError
            There is no such text: a mistake of the page.
        """
        return self._words[key][self.language].format(**values)

    def known(self, key: str, otherwise: str) -> str:
        """The text under `key`, or `otherwise` where there is none: for names that come from data."""
        return self(key) if key in self._words else otherwise

    def count(self, key: str, number: int) -> str:
        """The number with the text under `key` in the form that the number asks for (``one|few|many`` in Russian)."""
        forms = self._words[key][self.language].split("|")
        return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}") + " " + forms[_form(self.language, number)]


def choose_language(chosen: str | None, accept: str | None) -> str:
    """The language of a page: the one chosen, else the first of the browser's that there is, else English.

    Parameters
    ----------
    chosen : str or None
        What the person chose before (query or cookie).
    accept : str or None
        The header ``Accept-Language``, such as ``ru-RU,ru;q=0.9,en;q=0.8``.
    """
    if chosen in LANGUAGES:
        return chosen
    wanted: list[tuple[float, str]] = []
    for part in (accept or "").split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            wanted.append((float(weight or 1), name.partition("-")[0].lower()))
        except ValueError:
            continue
    wanted.sort(key=lambda item: -item[0])
    return next((name for weight, name in wanted if weight > 0 and name in LANGUAGES), DEFAULT)


def _form(language: str, number: int) -> int:
    """Position of the plural form, as in the Unicode CLDR plural rules."""
    if language != "ru":
        return 0 if number == 1 else 1
    if number % 10 == 1 and number % 100 != 11:
        return 0
    return 1 if 2 <= number % 10 <= 4 and not 12 <= number % 100 <= 14 else 2


@cache
def _read() -> dict[str, dict[str, str]]:
    text = resources.files("reviewclf.pages").joinpath("texts.yaml").read_text(encoding="utf-8")
    words: dict[str, dict[str, str]] = yaml.safe_load(text)
    return words
