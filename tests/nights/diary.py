"""Lives the nights of a shop, and holds every one of them against the books and against the model's ledger."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
from rich.console import Console
from typer.testing import CliRunner

from reviewclf import tables
from reviewclf.cli import app
from reviewclf.labeling.asking import journaled_votes
from reviewclf.manifest import digest_of
from reviewclf.night import NightReport, run_night
from reviewclf.settings import Settings, load_settings
from reviewclf.stages.dataset import find_dataset
from reviewclf.store import Store
from reviewclf.text import clean_text, text_hash
from tests.nights.books import Books, Row, Told
from tests.nights.child import killed_night
from tests.nights.llm import TOKENS_IN, TOKENS_OUT, ScriptedModel
from tests.nights.shop import HALF, KILLED_LABELLING, NIGHTS, Answer, Shop, Tonight, content_of
from tests.nights.words import FILTERED, category_of

EVERY_NIGHT = ("ingest", "label")
RETRAINED = (1, HALF, NIGHTS)
_SIGKILL = -9
_READING = ("REVIEWCLF_INGEST__ID_COLUMN", "REVIEWCLF_INGEST__CREATED_AT_COLUMN", "REVIEWCLF_INGEST__SEPARATOR")


class Diary:
    """Lives nights one after the other.

    Parameters
    ----------
    folder : Path
        Of the shop, its settings and its store.
    model : ScriptedModel
    seed : int
    retrains : bool
        Whether some nights train and score as well.
    """

    def __init__(self, folder: Path, model: ScriptedModel, seed: int, *, retrains: bool) -> None:
        self._shop = Shop(folder, seed)
        self._model = model
        self._variables = self._shop.variables(model.address)
        self._retrains = retrains
        self._books = Books()
        self._read: dict[str, tuple[str, ...]] = {}
        self._answers: dict[tuple[str, str], str] = {}

    def live(self, until: int = NIGHTS) -> dict[int, dict[str, str]]:
        """Live the nights; an AssertionError names the night, what had happened, and what differs.

        Returns
        -------
        dict
            Digests of the tables in the middle and at the end, as far as it came.
        """
        digests = {}
        for tonight in self._shop.nights():
            with environment({**self._variables, **tonight.variables}):
                self._live(tonight)
                if tonight.number in (HALF, NIGHTS):
                    digests[tonight.number] = self._digests()
            if tonight.number == until:
                break
        return digests

    def _digests(self) -> dict[str, str]:
        """One digest for each table, over what does not depend on the clock or on the order of parts."""
        columns = {
            "clean": ["review_id", "text_clean", "text_hash", "source", "created_at"],
            "duplicates": ["review_id", "source", "text_hash"],
            "quarantine": ["reason", "payload", "source"],
            "votes": ["text_hash", "annotator", "prompt", "draw", "label", "confidence", "reason"],
            "labels": ["text_hash", "label", "confidence", "method", "origin", "decision"],
        }
        found = {}
        for name, wanted in columns.items():
            rows = self._table(name, wanted).astype(str).to_numpy().tolist()
            found[name] = digest_of(sorted(rows))
        return found

    # -- one night -----------------------------------------------------------------------------------------------------

    def _live(self, tonight: Tonight) -> None:
        self._model.night, self._model.script = tonight.number, tonight.script
        if tonight.asks_people:
            self._ask_people(tonight)
        steps = EVERY_NIGHT
        if self._retrains and tonight.number in RETRAINED:
            steps = (*EVERY_NIGHT, "retrain", "score")
        if tonight.killed_at:
            code = killed_night({**self._variables, **tonight.variables}, steps, tonight.killed_at)
            assert code == _SIGKILL, f"{tonight}: the night came to its end with {code}"
            if tonight.killed_at in KILLED_LABELLING:
                self._books.publish(self._fresh(tonight))
        report = run_night(
            load_settings(_env_file=None), who=f"night {tonight.number}", console=Console(file=StringIO()), steps=steps
        )
        self._compare_outcomes(tonight, report)
        if tonight.fails != "ingest":
            self._compare_rows(tonight, report)
        self._compare_reviews(tonight)
        self._compare_votes(tonight)
        if not tonight.fails:
            self._compare_labels(tonight)
        if "retrain" in steps:
            self._compare_datasets(tonight, report)

    def _compare_outcomes(self, tonight: Tonight, report: NightReport) -> None:
        failed = {step.step: step.reason for step in report.steps if step.outcome == "failed"}
        assert set(failed) == ({tonight.fails} if tonight.fails else set()), f"{tonight}: {failed}"
        if tonight.fails == "ingest":
            assert [step.outcome for step in report.steps][:2] == ["failed", "skipped"], f"{tonight}"

    def _compare_rows(self, tonight: Tonight, report: NightReport) -> None:
        told = self._books.publish(self._fresh(tonight))
        assert report.rows is not None
        counts = report.rows.counts
        parts = ("known", "clean", "quarantined", "duplicates")
        expected = {part: sum(getattr(source, part) for source in told.values()) for part in ("rows_in", *parts)}
        assert counts["rows_in"] == sum(counts[part] for part in parts), f"{tonight}: {counts}"
        assert {part: counts[part] for part in expected} == expected, f"{tonight}: {counts}, not {_by_source(told)}"
        for source, of_source in told.items():
            seen = report.rows.sources.get(source, {})
            wanted = {part: getattr(of_source, part) for part in parts if part != "known"}
            assert {part: seen.get(part, 0) for part in wanted} == wanted, f"{tonight}: {source}"
            reasons = Counter({name.partition(":")[0]: n for name, n in report.rows.quarantine.get(source, {}).items()})
            assert reasons == of_source.refused, f"{tonight}: {source}"
        assert counts["edited"] == self._books.edited, f"{tonight}"
        unknown = sum(source.unknown_dates for source in told.values())
        assert counts["unknown_dates"] == unknown, f"{tonight}"

    def _fresh(self, tonight: Tonight) -> dict[str, list[Row]]:
        """Files that have changed since they were last published, or that are read in another way than then."""
        reading = tuple(tonight.variables.get(name, "") for name in _READING)
        by_order, has_times = bool(reading[0]), not reading[1]
        fresh = {}
        for name, rows in self._shop.files.items():
            more = self._shop.more_columns.get(name, [])
            state = (content_of(rows, more), *reading)
            if self._read.get(name) != state:
                self._read[name] = state
                fresh[name] = [_as_read(row, by_order=by_order, has_times=has_times, more=more) for row in rows]
        return fresh

    def _compare_reviews(self, tonight: Tonight) -> None:
        there = visible_in(self._store)
        wanted = self._books.visible
        missing, more = _shown(wanted - there, self._books.texts), _shown(there - wanted, self._books.texts)
        assert there == wanted, f"{tonight}: missing reviews {missing}; reviews that should not be there {more}"
        hashes = self._table("clean", ["text_hash"])["text_hash"]
        assert hashes.is_unique, f"{tonight}: a text is clean twice"

    def _compare_votes(self, tonight: Tonight) -> None:
        twice = self._model.sold_twice()
        assert not twice, f"{tonight}: paid twice: {[(sold.night, sold.text) for sold in twice[:5]]}"
        votes = self._table("votes", ["text_hash", "annotator", "prompt", "draw"])
        votes = votes[votes["annotator"].str.startswith(self._model_name)]
        known = set(zip(votes["text_hash"], votes["annotator"], votes["prompt"], votes["draw"], strict=True))
        assert len(known) == len(votes), f"{tonight}: a vote is in the table twice"
        known |= set(journaled_votes(self._store))
        # Nobody has to be asked about a text without a word.
        held = Counter(key for key, *_ in known if re.search(r"\w", self._books.texts.get(key, key)))
        paid = self._model.votes()
        lost = {key: (n, held.get(key, 0)) for key, n in paid.items() if held.get(key, 0) != n}
        assert not lost, f"{tonight}: paid and held: {lost}"
        assert set(held) == set(paid), f"{tonight}: votes that nobody was paid for: {set(held) - set(paid)}"
        if tonight.tokens is not None:
            spent = sum(sold.night == tonight.number for sold in self._model.ledger) * (TOKENS_IN + TOKENS_OUT)
            assert 0 < spent <= tonight.tokens, f"{tonight}: spent {spent}"

    def _compare_labels(self, tonight: Tonight) -> None:
        labels = self._table("labels", ["text_hash", "label", "origin"]).set_index("text_hash")
        votes = self._table("votes", ["text_hash", "annotator", "label"])
        read = votes[votes["annotator"].str.startswith(self._model_name) & votes["label"].notna()]
        people: dict[str, list[str]] = {}
        for (key, _), label in self._answers.items():
            people.setdefault(key, []).append(label)
        for key in {*read["text_hash"], *people}:
            assert key in labels.index, f"{tonight}: no label for {self._books.texts.get(key, key)!r}"
        for key, said in people.items():
            assert labels.at[key, "origin"] == "human", f"{tonight}: {key}"
            assert labels.at[key, "label"] in said, f"{tonight}: {key} is {labels.at[key, 'label']}, people said {said}"
        for _, key in self._books.visible:
            text = self._books.texts[key]
            if key in labels.index and key not in people and FILTERED not in text:
                assert labels.at[key, "label"] == category_of(text), f"{tonight}: {text!r}"

    def _compare_datasets(self, tonight: Tonight, report: NightReport) -> None:
        settings = self._settings
        dataset = find_dataset(settings, "newest")
        rows = self._store.read_table(dataset.keys("dataset"), schema=tables.DATASET_SCHEMA).to_pandas()
        trained = {text_hash(text) for text in rows.loc[rows["split"] != "test", "text_clean"]}
        gold = {text_hash(clean_text(text)) for text, _ in self._shop.gold}
        assert trained, f"{tonight}"
        assert not trained & gold, f"{tonight}: gold is trained on"
        assert report.champion is not None
        assert report.champion.after, f"{tonight}: {report.candidates}"
        answered = set(self._table("predictions", ["review_id"])["review_id"])
        assert set(self._table("clean", ["review_id"])["review_id"]) <= answered, f"{tonight}: reviews that nobody has answered"

    # -- people --------------------------------------------------------------------------------------------------------

    def _ask_people(self, tonight: Tonight) -> None:
        clean = self._table("clean", ["text_hash", "source"])
        answers = self._shop.answers(clean.loc[clean["source"] == "day-02.csv", "text_hash"].tolist())
        path = self._shop.source.parent / f"answers-{tonight.number:02}.csv"
        frame = pd.DataFrame(answers, columns=Answer._fields)
        frame.rename(columns={"person": "annotator", "label": "answer"}).to_csv(path, index=False)
        done = CliRunner().invoke(app, ["review", "import", str(path)])
        assert done.exit_code == 0, f"{tonight}: {done.output} {done.exception!r}"
        for answer in answers:
            self._answers[answer.text_hash, answer.person] = answer.label

    # -- plumbing ------------------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> Settings:
        return load_settings(_env_file=None)

    @property
    def _model_name(self) -> str:
        return f"{self._settings.llm.model}@"

    @property
    def _store(self) -> Store:
        return Store(self._settings.store_uri)

    def _table(self, name: str, columns: list[str]) -> pd.DataFrame:
        return rows_of(self._store, name, columns)


def rows_of(store: Store, table: str, columns: list[str]) -> pd.DataFrame:
    """Columns of a table as it is now; no rows where nothing was written to it."""
    keys = store.snapshot().keys(table)
    if not keys:
        return pd.DataFrame({column: pd.Series(dtype="object") for column in columns})
    return store.read_table(keys, columns).to_pandas()


def visible_in(store: Store) -> set[tuple[str, str]]:
    """Source and text hash of every review that a store shows."""
    rows = pd.concat([rows_of(store, table, ["source", "text_hash"]) for table in ("clean", "duplicates")])
    return set(zip(rows["source"], rows["text_hash"], strict=True))


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Settings of a night."""
    with mock.patch.dict(os.environ, dict(variables)):
        yield


def _as_read(row: Row, *, by_order: bool, has_times: bool, more: list[str]) -> Row:
    if row.broken:
        # What cannot be read is known by its line, and that is another one where the file has gained a column.
        return row._replace(text=f"{row.text} {more}")
    return row._replace(id=row.order if by_order else row.id, dated=row.dated or not has_times)


def _by_source(told: Mapping[str, Told]) -> dict[str, Any]:
    return {source: (row.rows_in, row.known, row.clean, row.duplicates, dict(row.refused)) for source, row in told.items()}


def _shown(reviews: set[tuple[str, str]], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(source, texts.get(key, key)) for source, key in sorted(reviews)[:5]]
