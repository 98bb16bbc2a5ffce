"""The reviews of a made-up shop, no two alike, and the taxonomy, prompt and candidate that go with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

THINGS = {
    "одежда": ("платье", "свитер", "куртка", "юбка", "блузка"),
    "посуда": ("кастрюля", "сковорода", "кружка", "тарелка", "чайник"),
    "обувь": ("сапоги", "кроссовки", "ботинки", "туфли", "тапочки"),
}
_SAID = (
    "{thing} понравилось мужу, {word}",
    "взяла {thing} на дачу, {word}",
    "{thing} пришло мятым: {word}",
    "{thing} своих денег стоит. {word}!",
    "вчера привезли {thing} - {word}",
    "{word}, а {thing} ношу уже год",
)
_SYLLABLES = ("ба", "ве", "ги", "до", "жу", "за", "ки", "ло", "ме", "ну", "па", "ри", "со", "ту", "фи", "хо", "ча", "ше")
# A word of a review that the scripted server's content filter refuses to read.
FILTERED = "непроизносимо"


def category_of(text: str) -> str | None:
    """The category whose thing a review names; what the scripted model answers."""
    return next((name for name, things in THINGS.items() for thing in things if thing in text), None)


def reviews(seed: int) -> Iterator[str]:
    """Reviews without end, each with a word of its own."""
    chance = random.Random(f"reviews of {seed}")
    things = [thing for names in THINGS.values() for thing in names]
    number = 0
    while True:
        # One word is like no other; the others keep reviews from being near-duplicates.
        words = " ".join(_word(chance.randrange(len(_SYLLABLES) ** 4)) for _ in range(3))
        yield chance.choice(_SAID).format(thing=chance.choice(things), word=f"{_word(number)} {words}")
        number += 1


def _word(number: int) -> str:
    word = ""
    for _ in range(4):
        number, position = divmod(number, len(_SYLLABLES))
        word += _SYLLABLES[position]
    return word


def write_taxonomy(path: Path, *, edition: int) -> None:
    """The taxonomy; every edition describes its categories in other words."""
    categories = [
        {"id": number, "name": name, "description": f"Издание {edition}: {', '.join(things)}", "keywords": list(things)}
        for number, (name, things) in enumerate(THINGS.items())
    ]
    path.write_text(yaml.safe_dump({"version": edition, "categories": categories}, allow_unicode=True), encoding="utf-8")


def write_prompt(folder: Path, *, edition: int) -> None:
    """The one prompt; the review stands alone in the user's message."""
    folder.mkdir(exist_ok=True)
    system = f"Издание {edition}. Назови категорию отзыва.\n{{categories}}"
    prompt = {"id": "shop", "version": edition, "system": system, "user": "{text}"}
    (folder / "shop.yaml").write_text(yaml.safe_dump(prompt, allow_unicode=True), encoding="utf-8")


def write_candidate(path: Path) -> None:
    """The one candidate, trained within a second."""
    params = {
        "estimator": "logistic_regression",
        "C": 30,
        "word": {"ngram_range": [1, 1], "min_df": 1, "max_features": 500},
        "calibration": "none",
    }
    candidate = {"name": "logreg", "kind": "linear", "description": "tiny", "params": params}
    path.write_text(yaml.safe_dump({"candidates": [candidate]}), encoding="utf-8")
