"""What stands on the promotion page, and where links lead: words, rows, bars, pages of answers."""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import pytest
import yaml

from reviewclf.evaluation import Difference, evaluate
from reviewclf.pages import links, view
from reviewclf.pages.texts import Texts, choose_language
from reviewclf.promotion.overview import AnswerPair, Comparison, GoldAnswer, JudgedVersion, Overview

EN, RU = Texts("en"), Texts("ru")


def version(number: str, **metrics: float) -> JudgedVersion:
    return JudgedVersion(
        version=number,
        run_id=f"{number:>032}",
        registered_at=datetime(2026, 1, 1, tzinfo=UTC),
        tags={"reviewclf.candidate": f"candidate-{number}", "reviewclf.gate": "passed", "reviewclf.gate_reason": "passed"},
        aliases=(),
        metrics={name.replace("__", "/"): value for name, value in metrics.items()},
    )


def overview(**roles: JudgedVersion | None) -> Overview:
    return Overview(at=datetime(2026, 1, 1, tzinfo=UTC), experiment_id="1", **roles)


def answer(number: int, *, label: str, champion: str, other: str) -> AnswerPair:
    about = {"review_id": str(number), "text_hash": f"hash-{number}", "label": label, "confidence": 0.5}
    return AnswerPair(*(GoldAnswer.model_validate({**about, "predicted": said}) for said in (champion, other)))


def comparison(*answers: AnswerPair, difference: Difference | None = None) -> Comparison:
    return Comparison(
        gate=None,
        champion_evaluation=None,
        evaluation=None,
        difference=difference,
        common=100,
        answers=answers,
        same_gold=True,
    )


# -- words -----------------------------------------------------------------------------------------------------------


def words() -> dict[str, dict[str, str]]:
    text = resources.files("reviewclf.pages").joinpath("texts.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize("key", sorted(words()))
def test_every_text_says_the_same_in_both_languages(key: str) -> None:
    texts = words()[key]
    assert texts.keys() == {"en", "ru"}
    names = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (texts["en"], texts["ru"])]
    assert names[0] == names[1]
    assert re.search("[А-Яа-яЁё]", texts["ru"]) or texts["en"] == texts["ru"]
    if "|" in texts["en"]:
        assert (texts["en"].count("|"), texts["ru"].count("|")) == (1, 2)


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "1 отзыв"), (2, "2 отзыва"), (5, "5 отзывов"), (11, "11 отзывов"), (21, "21 отзыв"), (304, "304 отзыва")],
)
def test_russian_counts_take_the_right_form(number: int, said: str) -> None:
    assert RU.count("reviews", number) == said


@pytest.mark.parametrize(
    ("chosen", "accept", "language"),
    [
        ("ru", "en-US", "ru"),
        (None, "ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        (None, "de,en;q=0.5,ru;q=0.7", "ru"),
        (None, "de", "en"),
        ("xx", None, "en"),
        (None, "ru;q=0,en", "en"),
        (None, "ru;q=broken", "en"),
    ],
)
def test_language_is_the_chosen_one_else_the_browsers(chosen: str | None, accept: str | None, language: str) -> None:
    assert choose_language(chosen, accept) == language


# -- figures ---------------------------------------------------------------------------------------------------------


def test_less_is_better_for_errors_and_seconds() -> None:
    ours = version("1", gold__weighted_f1=0.80, gold__ece=0.05, latency__p95_seconds=0.010, gold__rows=300)
    theirs = version("2", gold__weighted_f1=0.82, gold__ece=0.07, latency__p95_seconds=0.005, gold__rows=300)
    rows = {row["name"]: row for row in view.metric_rows(ours, theirs, EN)}
    assert (rows["Weighted F1"]["difference"], rows["Weighted F1"]["trend"]) == ("+0.020", "better")
    assert (rows["Calibration error (ECE)"]["difference"], rows["Calibration error (ECE)"]["trend"]) == ("+0.020", "worse")
    assert (rows["One review, p95"]["difference"], rows["One review, p95"]["trend"]) == ("−5.0 ms", "better")
    assert (rows["Gold reviews"]["difference"], rows["Gold reviews"]["trend"]) == ("0", "")
    assert "Macro F1" not in rows


def test_a_figure_that_one_version_lacks_is_said_to_be_missing() -> None:
    [row] = view.metric_rows(version("1"), version("2", gold__accuracy=0.9), EN)
    assert [row[name] for name in ("champion", "other", "difference", "trend")] == ["not measured", "0.900", "", ""]


def test_bars_share_one_scale_and_stay_in_their_picture() -> None:
    ours = version("1", gold__accuracy=0.8, gold__accuracy_low=0.7, gold__accuracy_high=0.9)
    theirs = version("2", gold__accuracy=0.85, gold__accuracy_low=0.8, gold__accuracy_high=0.95)
    [row] = view.metric_rows(ours, theirs, EN)
    assert len(row["bars"]) == 2
    assert all(0 <= bar["low"] < bar["value"] < bar["high"] <= view.BAR_WIDTH for bar in row["bars"])
    assert row["bars"][1]["low"] == pytest.approx(row["bars"][0]["value"], abs=0.2)


@pytest.mark.parametrize(("value", "said"), [(0.021, "+2.1"), (-0.021, "−2.1"), (0.0002, "0.0"), (-0.0002, "0.0")])
def test_points_carry_their_sign(value: float, said: str) -> None:
    assert view.points(value) == said


def test_matrix_shades_are_shares_of_the_row() -> None:
    found = evaluate(["a", "a", "a", "a", "b"], ["a", "a", "a", "b", "b"], ["a", "b", "c"])
    rows = view.matrix_rows(found, EN)
    assert [[cell["count"] for cell in row["cells"]] for row in rows] == [[3, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert [cell["shade"] for cell in rows[0]["cells"]] == [6, 2, 0]
    assert [row["recall"] for row in rows] == ["75\N{NO-BREAK SPACE}%", "100\N{NO-BREAK SPACE}%", "–"]
    assert rows[0]["cells"][1]["title"] == "1 of 4 a labelled b"


def test_answers_come_in_pages_with_their_texts() -> None:
    lost = [answer(number, label="a", champion="a", other="b") for number in range(12)]
    won = answer(99, label="b", champion="a", other="b")
    held = comparison(*lost, won)
    first = view.answer_page(held, {"hash-0": "Платье"}, winner=None, page=1)
    assert (len(first["rows"]), first["pages"], first["counts"]) == (10, 2, {"champion": 12, "other": 1, "neither": 0})
    assert [row["text"] for row in first["rows"][:2]] == ["Платье", None]
    assert [row["answer"] for row in view.answer_page(held, {}, winner="other", page=7)["rows"]] == [won]


def test_the_headline_says_what_waits_and_by_how_much_it_differs() -> None:
    two = overview(champion=version("1"), challenger=version("2"))
    held = comparison(difference=Difference(value=0.02, low=-0.001, high=0.04, p_not_worse=0.97))
    assert view.headline(two, held, None, EN) == (
        "Version 1 (candidate-1) is in production. Version 2 (candidate-2) waits: +2.0 points of weighted F1 against the "
        "champion, 95% interval −0.1 to +4.0."
    )
    assert "could not be compared" in view.headline(two, comparison(), None, EN)
    assert view.headline(overview(champion=version("1")), None, None, EN).endswith("Nothing waits to be promoted.")
    assert view.headline(overview(), None, None, RU) == RU("head_empty")


def test_beside_the_champion_stands_the_challenger_unless_another_is_asked_for() -> None:
    three = overview(champion=version("2"), challenger=version("3"), previous=version("1"))
    assert [found.version for found in (view.choose_other(three, wanted) for wanted in (None, "1", "2", "77")) if found] == [
        "3",
        "1",
        "3",
        "3",
    ]
    assert view.choose_other(overview(champion=version("2")), None) is None


# -- links -----------------------------------------------------------------------------------------------------------


def manifest(stage: str, **details: Any) -> dict[str, Any]:
    return {"stage": stage, "digest": "d" * 32, "inputs": {}, "outputs": {}, "counts": {}, "details": details}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (manifest("train", run_id="a" * 32), {links.MLFLOW_RUN: f"/runs/{'a' * 32}"}),
        (manifest("train", skipped="no encoder"), {}),
        (manifest("dataset"), {links.MLFLOW_RUN: f"/runs/of/{'d' * 32}"}),
        (manifest("aggregate"), {links.MLFLOW_RUN: f"/runs/of/{'d' * 32}"}),
        (manifest("evaluate", dataset="e" * 32), {links.MLFLOW_RUN: f"/runs/of/{'e' * 32}"}),
        (
            manifest("validate_raw", data_docs="file:///a%20b/local_site/validations/raw/x%2By/reviews.html"),
            {links.DATA_DOCS: "/docs/validations/raw/x%2By/reviews.html"},
        ),
        (manifest("publish", data_docs={"raw": "file:///x", "clean": "file:///y"}), {links.DATA_DOCS: "/docs/index.html"}),
        (manifest("validate_raw", data_docs=None), {}),
        (
            manifest("gate", challenger={"candidate": "c", "version": "7", "run_id": "a" * 32}),
            {
                links.MLFLOW_RUN: f"/runs/{'a' * 32}",
                links.GATE_REPORT: "/gate/7",
                links.PROMOTION: "/promotion?version=7",
            },
        ),
        (
            manifest("gate", challenger=None, verdicts={"c": {"verdict": "failed", "version": "5"}}),
            {links.GATE_REPORT: "/gate/5", links.PROMOTION: "/promotion?version=5"},
        ),
        (
            manifest("promote", promoted=True, champion="7"),
            {links.GATE_REPORT: "/gate/7", links.PROMOTION: "/promotion?version=7"},
        ),
        (["logreg"], {}),
        (None, {}),
    ],
)
def test_links_of_a_task_lead_to_what_it_made(result: Any, expected: dict[str, str]) -> None:
    assert links.links_of(result) == expected
