"""A shop that lives forty nights: what happens on which is drawn by a seed, and every kind of event happens."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tests.nights import words
from tests.nights.books import NO_IDS, Row
from tests.nights.llm import MODEL, TOKENS_IN, TOKENS_OUT, Script

NIGHTS, HALF = 40, 20
GROWING = "all.csv"
_FIRST_ROWS, _NIGHTLY_ROWS, _DAILY_ROWS = 60, 10, 12
_GOLD = ("{} пришло вчера, {}", "{}: доставка долгая, {}", "{} на фото лучше, {}", "подарила {} маме, {}", "ещё раз {}, {}")
_BUDGET_VOTES = 9

# Where a night is killed: before a stage's manifest is written, or before a commit.
_KILLED_INGESTING = ("stage-ingest", "stage-validate_raw", "stage-clean", "commit-reviews")
KILLED_LABELLING = ("stage-select", "stage-annotate", "commit-votes", "stage-aggregate", "commit-labels")
_KILLED_AT = (*_KILLED_INGESTING, *KILLED_LABELLING)


class Answer(NamedTuple):
    """What a person says to a review."""

    text_hash: str
    person: str
    label: str


@dataclass
class Tonight:
    """One night: what was done to the world before it, and what has to come of it.

    Attributes
    ----------
    variables : dict of str to str
        Settings of this night alone, or of all nights from now on (see :class:`Shop`).
    fails : str
        The step that has to fail; empty: none.
    killed_at : str
        The night is killed there first, then lived once more.
    tokens : int or None
        The night must not buy more than so many.
    asks_people : bool
        Somebody answers what is in the store, before the night.
    """

    number: int
    happened: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    script: Script = field(default_factory=Script)
    fails: str = ""
    killed_at: str = ""
    tokens: int | None = None
    asks_people: bool = False

    def __str__(self) -> str:
        return f"night {self.number} ({', '.join(self.happened)})"


class Shop:
    """The shop's files, and what happens to them.

    Parameters
    ----------
    folder : Path
        Where everything is written.
    seed : int
        Draws reviews and events.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self._folder = folder
        self._chance = random.Random(f"shop of {seed}")
        self._texts = words.reviews(seed)
        self._number = 1000
        # By id, the texts that edited reviews had.
        self._before: dict[str, str] = {}
        self.files: dict[str, list[Row]] = {GROWING: []}
        self.more_columns: dict[str, list[str]] = {GROWING: []}
        self.editions = {"taxonomy": 1, "prompt": 1}
        self.gold: list[tuple[str, str]] = []
        self._events = self._planned()
        self._grow_gold(5)
        words.write_candidate(folder / "candidates.yaml")

    def variables(self, address: str) -> dict[str, str]:
        """Settings of every night."""
        return {
            "REVIEWCLF_HOME": str(self._folder / "home"),
            "REVIEWCLF_SOURCE": str(self.source),
            "REVIEWCLF_GOLD": str(self._folder / "gold.csv"),
            "REVIEWCLF_VOTES": "",
            "REVIEWCLF_SYNTHETIC": "",
            "REVIEWCLF_TAXONOMY": str(self._folder / "taxonomy.yaml"),
            "REVIEWCLF_CANDIDATES": str(self._folder / "candidates.yaml"),
            "REVIEWCLF_LLM__BACKEND": "openai",
            "REVIEWCLF_LLM__MODEL": MODEL,
            "REVIEWCLF_LLM__BASE_URL": address,
            "REVIEWCLF_LLM__PROMPTS": str(self._folder / "prompts"),
            "REVIEWCLF_LLM__VOTES": "2",
            "REVIEWCLF_LLM__ANSWER": "text",
            "REVIEWCLF_LLM__CONCURRENCY": "4",
            "REVIEWCLF_LLM__MAX_RETRIES": "0",
            "REVIEWCLF_AUGMENTATION__BACKEND": "none",
            "REVIEWCLF_GATE__MIN_WEIGHTED_F1": "0.1",
            "REVIEWCLF_GATE__MIN_CLASS_RECALL": "",
        }

    def nights(self) -> Iterator[Tonight]:
        """Each night, when its files are written and not lived yet."""
        for number in range(1, NIGHTS + 1):
            tonight = Tonight(number)
            self._grow(_FIRST_ROWS if number == 1 else _NIGHTLY_ROWS)
            for event in self._events.get(number, []):
                tonight.happened.append(event.__name__.strip("_"))
                event(tonight)
            self._write()
            yield tonight

    # -- what may happen -----------------------------------------------------------------------------------------------

    def _planned(self) -> dict[int, list[Callable[[Tonight], None]]]:
        """What happens when: what breaks a night or turns it upside down has a night of its own, what is ordinary any.

        The first night, that in the middle and the last are calm: whatever went wrong before is made good by then.
        """
        breaking: list[Callable[[Tonight], None]] = [
            self._day_is_missing,
            self._day_is_empty,
            self._separator_is_wrong,
            self._id_column_is_wrong,
            self._time_column_is_wrong,
            self._file_is_mostly_broken,
            self._model_is_away,
            self._model_goes_away,
            self._model_refuses_connections,
            self._model_filters,
            self._answers_are_cut,
            self._budget_ends,
            self._taxonomy_changes,
            self._prompt_changes,
            *[self._stage_is_killed] * len(_KILLED_AT),
        ]
        ordinary: list[Callable[[Tonight], None]] = [
            self._file_is_replaced,
            self._file_is_removed,
            self._file_is_doubled,
            self._file_is_doubled,
            self._column_comes,
            self._reviews_are_edited,
            self._reviews_are_edited,
            self._reviews_are_edited,
            self._edits_are_taken_back,
            self._ids_collide,
            self._ids_are_lost,
            self._dates_are_unreadable,
            self._dates_are_unreadable,
            self._rows_are_bad,
            self._rows_are_bad,
            self._hidden_files_lie_around,
            self._people_answer,
            self._people_answer,
            self._gold_grows,
        ]
        self._points = self._chance.sample(_KILLED_AT, len(_KILLED_AT))
        nights = [night for night in range(3, NIGHTS) if night != HALF]
        planned: dict[int, list[Callable[[Tonight], None]]] = {night: [self._day] for night in range(2, NIGHTS + 1)}
        for night, event in zip(self._chance.sample(nights, len(breaking)), breaking, strict=True):
            planned[night] = [event] if event in (self._day_is_missing, self._day_is_empty) else [self._day, event]
        for night, event in zip(self._chance.sample(nights, len(ordinary)), ordinary, strict=True):
            planned[night].append(event)
        return planned

    def _day(self, tonight: Tonight) -> None:
        self.files[f"day-{tonight.number:02}.csv"] = [self._row() for _ in range(_DAILY_ROWS)]

    def _day_is_missing(self, tonight: Tonight) -> None:
        """No file of the day."""

    def _day_is_empty(self, tonight: Tonight) -> None:
        self.files[f"day-{tonight.number:02}.csv"] = []

    def _file_is_replaced(self, tonight: Tonight) -> None:
        self.files[self._a_day(tonight)] = [self._row() for _ in range(_DAILY_ROWS + 3)]

    def _reviews_are_edited(self, tonight: Tonight) -> None:
        rows = self.files[GROWING]
        good = [place for place, row in enumerate(rows[:-_NIGHTLY_ROWS]) if row.has_id and not row.broken and len(row.text) > 9]
        for place in self._chance.sample(good, 4):
            self._before[rows[place].id] = rows[place].text
            rows[place] = rows[place]._replace(text=next(self._texts), when=_day_after(tonight), dated=True)

    def _edits_are_taken_back(self, tonight: Tonight) -> None:
        rows = self.files[GROWING]
        if not self._before:
            self._reviews_are_edited(tonight)
            self._events[tonight.number + 1].append(self._edits_are_taken_back)
            return
        for place, row in enumerate(rows):
            if row.id in self._before:
                rows[place] = row._replace(text=self._before.pop(row.id), when=_day_after(tonight), dated=True)

    def _file_is_doubled(self, tonight: Tonight) -> None:
        name = self._a_day(tonight)
        self.files[f"copy-{tonight.number:02}-of-{name}"] = list(self.files[name])

    def _file_is_removed(self, tonight: Tonight) -> None:
        name = self._a_day(tonight)
        del self.files[name]

    def _column_comes(self, tonight: Tonight) -> None:
        self.more_columns[GROWING] = ["stars"]
        self._events[min(tonight.number + 4, NIGHTS)].append(self._column_goes)

    def _column_goes(self, tonight: Tonight) -> None:
        self.more_columns[GROWING] = []

    def _ids_collide(self, tonight: Tonight) -> None:
        taken = [row.id for row in self.files[GROWING] if row.has_id]
        name = f"market-{tonight.number:02}.csv"
        self.files[name] = [self._row()._replace(id=taken[place]) for place in range(_DAILY_ROWS)]

    def _ids_are_lost(self, tonight: Tonight) -> None:
        name = f"sheet-{tonight.number:02}.csv"
        self.files[name] = [self._row()._replace(id=NO_IDS[place % len(NO_IDS)]) for place in range(_DAILY_ROWS)]

    def _dates_are_unreadable(self, tonight: Tonight) -> None:
        rows = self.files[GROWING]
        rows[-1] = rows[-1]._replace(when="вчера", dated=False)
        rows[-2] = rows[-2]._replace(when="31.02.2026", dated=False)

    def _rows_are_bad(self, tonight: Tonight) -> None:
        rows = self.files[GROWING]
        rows.extend([self._row()._replace(text=text) for text in ("", "<br>", f"!!! {tonight.number * '?'}")])
        rows.append(self._row()._replace(broken=True))
        rows.extend(self._row() for _ in range(2 * _NIGHTLY_ROWS))

    def _hidden_files_lie_around(self, tonight: Tonight) -> None:
        (self.source / "_temporary").mkdir(exist_ok=True)
        for path in (self.source / ".day.csv", self.source / "_temporary" / "part.csv"):
            path.write_text("review_id,text\n1,не дочитано до кон", encoding="utf-8")

    def _separator_is_wrong(self, tonight: Tonight) -> None:
        tonight.variables["REVIEWCLF_INGEST__SEPARATOR"] = ";"
        tonight.fails = "ingest"

    def _id_column_is_wrong(self, tonight: Tonight) -> None:
        tonight.variables["REVIEWCLF_INGEST__ID_COLUMN"] = "order"

    def _time_column_is_wrong(self, tonight: Tonight) -> None:
        tonight.variables["REVIEWCLF_INGEST__CREATED_AT_COLUMN"] = "when"

    def _file_is_mostly_broken(self, tonight: Tonight) -> None:
        name = f"broken-{tonight.number:02}.csv"
        rows = [self._row() for _ in range(_DAILY_ROWS)]
        self.files[name] = [row._replace(broken=place > 2) for place, row in enumerate(rows)]
        tonight.fails = "ingest"
        # It is mended before the next night.
        self._events[tonight.number + 1].append(self._mended(name, rows))

    def _mended(self, name: str, rows: list[Row]) -> Callable[[Tonight], None]:
        def file_is_mended(tonight: Tonight) -> None:
            self.files[name] = rows

        return file_is_mended

    def _model_is_away(self, tonight: Tonight) -> None:
        tonight.script = Script(answers_left=0)
        tonight.fails = "label"

    def _model_goes_away(self, tonight: Tonight) -> None:
        tonight.script = Script(answers_left=7)
        tonight.fails = "label"

    def _model_refuses_connections(self, tonight: Tonight) -> None:
        tonight.variables["REVIEWCLF_LLM__BASE_URL"] = "http://127.0.0.1:9/v1"
        tonight.fails = "label"

    def _model_filters(self, tonight: Tonight) -> None:
        rows = self.files[GROWING]
        rows[-1] = rows[-1]._replace(text=f"{rows[-1].text} {words.FILTERED}")

    def _answers_are_cut(self, tonight: Tonight) -> None:
        tonight.script = Script(cuts=True)

    def _budget_ends(self, tonight: Tonight) -> None:
        tonight.tokens = _BUDGET_VOTES * (TOKENS_IN + TOKENS_OUT)
        tonight.variables["REVIEWCLF_LLM__MAX_TOKENS"] = str(tonight.tokens)

    def _people_answer(self, tonight: Tonight) -> None:
        tonight.asks_people = True

    def _gold_grows(self, tonight: Tonight) -> None:
        self._grow_gold(2)
        # Somebody has read reviews of the shop itself, which must not be trained on from now on.
        for row in self.files[GROWING][5:9]:
            category = words.category_of(row.text)
            if category is not None:
                self.gold.append((row.text, category))

    def _taxonomy_changes(self, tonight: Tonight) -> None:
        self.editions["taxonomy"] += 1

    def _prompt_changes(self, tonight: Tonight) -> None:
        self.editions["prompt"] += 1

    def _stage_is_killed(self, tonight: Tonight) -> None:
        tonight.killed_at = self._points.pop()
        tonight.happened[-1] = f"killed at {tonight.killed_at}"

    # -- files ---------------------------------------------------------------------------------------------------------

    def answers(self, visible: list[str]) -> list[Answer]:
        """What two people say to some of these reviews; the second time they say something else."""
        labels = list(words.THINGS)
        chosen = sorted(visible)[:6]
        return [Answer(key, f"reader {place % 2}", self._chance.choice(labels)) for place, key in enumerate(chosen)]

    def _row(self) -> Row:
        self._number += 1
        return Row(str(self._number), f"o{self._number}", next(self._texts))

    def _a_day(self, tonight: Tonight) -> str:
        """A daily file of an earlier night."""
        mine = f"day-{tonight.number:02}.csv"
        days = sorted(name for name, rows in self.files.items() if name.startswith("day-") and name != mine and rows)
        return self._chance.choice(days)

    def _grow(self, rows: int) -> None:
        self.files[GROWING].extend(self._row() for _ in range(rows))

    def _grow_gold(self, each: int) -> None:
        for category, things in words.THINGS.items():
            for thing in things:
                for _ in range(each):
                    said = next(self._texts).rpartition(" ")[2]
                    self.gold.append((_GOLD[len(self.gold) % len(_GOLD)].format(thing, said), category))

    def _write(self) -> None:
        for path in self.source.glob("*.csv"):
            if path.name not in self.files and not path.name.startswith("."):
                path.unlink()
        for name, rows in self.files.items():
            content = content_of(rows, self.more_columns.get(name, []))
            path = self.source / name
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                path.write_text(content, encoding="utf-8")
        words.write_taxonomy(self._folder / "taxonomy.yaml", edition=self.editions["taxonomy"])
        words.write_prompt(self._folder / "prompts", edition=self.editions["prompt"])
        (self._folder / "gold.csv").write_text(_csv([["text", "label"], *self.gold]), encoding="utf-8")


def _day_after(tonight: Tonight) -> str:
    return f"{date(2026, 5, 1) + timedelta(days=tonight.number)}"


def content_of(rows: list[Row], more_columns: list[str]) -> str:
    """A file's content; every row has an order's number beside its own."""
    header = ["review_id", "text", "created_at", "order", *more_columns]
    lines: list[Any] = [header]
    for row in rows:
        values = [row.id, row.text, row.when, row.order, *("5" for _ in more_columns)]
        lines.append([*values, "too", "many"] if row.broken else values)
    return _csv(lines)


def _csv(lines: list[Any]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
