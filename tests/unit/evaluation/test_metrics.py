"""Metrics, intervals, calibration, latency and the picture of the confusion matrix."""

from __future__ import annotations

import io
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from reviewclf.errors import EvaluationError
from reviewclf.evaluation import (
    evaluate,
    expected_calibration_error,
    measure_latency,
    paired_bootstrap,
    plot_confusion_matrix,
)

LABELS = ["обувь", "одежда", "посуда", "нет товара"]
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60)


def _draw(n: int, *, right: float, seed: int, labels: list[str] = LABELS) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(seed)
    true = random.integers(0, len(labels), n)
    predicted = np.where(random.random(n) < right, true, random.integers(0, len(labels), n))
    return [labels[i] for i in true], [labels[i] for i in predicted]


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    true, predicted = [list(column) for column in zip(*pairs, strict=True)]
    result = evaluate(true, predicted, LABELS, bootstrap=5)
    present = sorted(set(true) | set(predicted))
    options = {"average": "weighted", "zero_division": 0}
    assert result.accuracy.value == pytest.approx(accuracy_score(true, predicted))
    assert result.precision.value == pytest.approx(precision_score(true, predicted, **options))
    assert result.recall.value == pytest.approx(recall_score(true, predicted, **options))
    assert result.weighted_f1.value == pytest.approx(f1_score(true, predicted, **options))
    assert result.macro_f1.value == pytest.approx(f1_score(true, predicted, labels=present, average="macro", zero_division=0))
    assert result.confusion == confusion_matrix(true, predicted, labels=LABELS).tolist()
    for row, f1 in zip(result.per_class, f1_score(true, predicted, labels=LABELS, average=None, zero_division=0), strict=True):
        assert row.f1 == pytest.approx(f1)
        assert (row.support, row.predicted) == (true.count(row.label), predicted.count(row.label))


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_intervals_are_ordered_and_within_zero_and_one(pairs: list[tuple[str, str]]) -> None:
    result = evaluate([t for t, _ in pairs], [p for _, p in pairs], LABELS, bootstrap=50)
    for name in ("accuracy", "precision", "recall", "weighted_f1", "macro_f1"):
        interval = getattr(result, name)
        assert 0 <= interval.low <= interval.high <= 1 + 1e-12


def test_interval_of_accuracy_agrees_with_the_binomial_one() -> None:
    true, predicted = _draw(800, right=0.7, seed=1)
    accuracy = evaluate(true, predicted, LABELS, bootstrap=4000).accuracy
    deviation = np.sqrt(accuracy.value * (1 - accuracy.value) / 800)
    assert accuracy.low == pytest.approx(accuracy.value - 1.96 * deviation, abs=0.004)
    assert accuracy.high == pytest.approx(accuracy.value + 1.96 * deviation, abs=0.004)


def test_intervals_of_weighted_f1_cover_the_truth_about_as_often_as_they_say() -> None:
    true, predicted = _draw(60_000, right=0.7, seed=2)
    truth = evaluate(true, predicted, LABELS, bootstrap=1).weighted_f1.value
    covered = 0
    for start in range(0, 60_000, 300):
        part = slice(start, start + 300)
        interval = evaluate(true[part], predicted[part], LABELS, bootstrap=300).weighted_f1
        covered += interval.low <= truth <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_drawing_cells_is_the_same_as_drawing_rows() -> None:
    true, predicted = _draw(120, right=0.6, seed=3)
    random = np.random.default_rng(0)
    by_rows = []
    for _ in range(1500):
        rows = random.integers(0, 120, 120)
        drawn = evaluate([true[i] for i in rows], [predicted[i] for i in rows], LABELS, bootstrap=1)
        by_rows.append(drawn.macro_f1.value)
    interval = evaluate(true, predicted, LABELS, bootstrap=6000).macro_f1
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(by_rows, [0.025, 0.975])), abs=0.012)


def test_more_confidence_makes_wider_intervals() -> None:
    true, predicted = _draw(200, right=0.7, seed=4)
    narrow = evaluate(true, predicted, LABELS, confidence=0.5).weighted_f1
    wide = evaluate(true, predicted, LABELS, confidence=0.99).weighted_f1
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_equal_seeds_give_equal_results_and_other_seeds_other_intervals() -> None:
    true, predicted = _draw(100, right=0.7, seed=5)
    assert evaluate(true, predicted, LABELS, seed=1) == evaluate(true, predicted, LABELS, seed=1)
    assert evaluate(true, predicted, LABELS, seed=1).weighted_f1 != evaluate(true, predicted, LABELS, seed=2).weighted_f1


def test_class_without_rows_and_predictions_counts_in_no_mean() -> None:
    result = evaluate(["обувь", "одежда"], ["обувь", "одежда"], LABELS)
    assert result.macro_f1.value == result.weighted_f1.value == 1.0
    assert [row.support for row in result.per_class] == [1, 1, 0, 0]


def test_class_that_is_only_predicted_lowers_the_macro_f1() -> None:
    assert evaluate(["обувь"] * 4, ["обувь"] * 3 + ["посуда"], LABELS).macro_f1.value == pytest.approx((6 / 7 + 0) / 2)


def test_thousand_draws_of_800_rows_take_less_than_half_a_second() -> None:
    labels = [f"класс {i}" for i in range(9)]
    true, predicted = _draw(800, right=0.8, seed=6, labels=labels)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        evaluate(true, predicted, labels, bootstrap=1000)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("true", "predicted", "labels", "said"),
    [
        (["обувь"], [], LABELS, "lengths differ"),
        ([], [], LABELS, "no rows"),
        (["обувь", "шапка"], ["обувь", "обувь"], LABELS, r"y_true, row 1: unknown label 'шапка'"),
        (["обувь"], ["шапка"], LABELS, r"y_pred, row 0: unknown label 'шапка'"),
        (["обувь"], ["обувь"], ["обувь", "обувь"], "labels repeat"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(
    true: list[str], predicted: list[str], labels: list[str], said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        evaluate(true, predicted, labels)


@pytest.mark.parametrize("options", [{"bootstrap": 0}, {"confidence": 1.0}, {"confidence": float("nan")}])
def test_impossible_bootstrap_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(EvaluationError, match="bootstrap >= 1"):
        evaluate(["обувь"], ["обувь"], LABELS, **options)  # type: ignore[arg-type]


def test_better_model_is_surely_not_worse() -> None:
    true, weak = _draw(400, right=0.6, seed=7)
    strong = [t if i % 3 else w for i, (t, w) in enumerate(zip(true, weak, strict=True))]
    difference = paired_bootstrap(true, strong, weak, LABELS)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p_not_worse == 1.0
    reverse = paired_bootstrap(true, weak, strong, LABELS)
    assert reverse.value == pytest.approx(-difference.value)
    assert reverse.p_not_worse == 0.0


def test_model_compared_with_itself_is_never_worse() -> None:
    true, predicted = _draw(150, right=0.6, seed=8)
    difference = paired_bootstrap(true, predicted, predicted, LABELS)
    assert (difference.value, difference.low, difference.high, difference.p_not_worse) == (0.0, 0.0, 0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_difference_is_that_of_the_two_evaluations(seed: int) -> None:
    true, a = _draw(40, right=0.6, seed=seed)
    b = _draw(40, right=0.5, seed=seed)[1]
    for metric in ("accuracy", "weighted_f1", "macro_f1"):
        value = paired_bootstrap(true, a, b, LABELS, metric=metric, bootstrap=5).value  # type: ignore[arg-type]
        apart = [getattr(evaluate(true, predicted, LABELS, bootstrap=1), metric).value for predicted in (a, b)]
        assert value == pytest.approx(apart[0] - apart[1])


def test_pairing_makes_the_comparison_sharper_than_two_intervals() -> None:
    true, a = _draw(300, right=0.7, seed=9)
    b = list(a)
    wrong = [i for i, (t, p) in enumerate(zip(true, a, strict=True)) if t != p][:8]
    for i in wrong:
        b[i] = true[i]
    difference = paired_bootstrap(true, b, a, LABELS)
    alone = evaluate(true, a, LABELS).weighted_f1
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    assert difference.low > 0


def test_calibrated_probabilities_have_a_small_error_and_overconfident_ones_a_large() -> None:
    random = np.random.default_rng(0)
    p = random.uniform(0.5, 1.0, 20_000)
    probabilities = np.stack([p, 1 - p], axis=1)
    true = ["обувь" if u < share else "одежда" for u, share in zip(random.random(20_000), p, strict=True)]
    assert expected_calibration_error(true, probabilities, ["обувь", "одежда"]).value < 0.015
    sure = np.tile([0.99, 0.01], (20_000, 1))
    assert expected_calibration_error(true, sure, ["обувь", "одежда"]).value == pytest.approx(0.99 - 0.75, abs=0.015)


def test_reliability_table_holds_every_row_once() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.3, 0.7], [0.95, 0.05]])
    result = expected_calibration_error(["обувь", "обувь", "обувь", "одежда"], probabilities, ["обувь", "одежда"])
    assert [b.rows for b in result.bins] == [0, 0, 0, 0, 1, 0, 1, 0, 0, 2]
    assert [b.high for b in result.bins] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    last = result.bins[-1]
    assert (last.confidence, last.accuracy) == (pytest.approx(0.975), 0.5)
    assert result.value == pytest.approx((0.5 + 0.7 + 2 * 0.475) / 4)


@pytest.mark.parametrize(
    ("probabilities", "said"),
    [
        ([[0.5, 0.5, 0.0]], "expected shape"),
        ([[0.5, 0.4]], "row 0"),
        ([[np.nan, 1.0]], "row 0"),
        ([[-0.5, 1.5]], "row 0"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities: list[list[float]], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        expected_calibration_error(["обувь"], np.array(probabilities), ["обувь", "одежда"])


def test_latency_is_that_of_single_calls_and_of_a_batch() -> None:
    calls: list[int] = []

    def predict(texts: list[str]) -> None:
        calls.append(len(texts))
        time.sleep(0.004 if len(texts) == 1 else 0.02)

    latency = measure_latency(predict, ["а", "б"], single=10, batch=40, warmup=3)
    assert calls == [1] * 13 + [40]
    assert 0.004 <= latency.p50 <= latency.p95 < 0.1
    assert 0.0005 <= latency.batch_seconds_per_example < 0.004
    assert latency.n == 10


def test_latency_without_texts_is_refused() -> None:
    with pytest.raises(EvaluationError, match="0 texts"):
        measure_latency(len, [])


def test_confusion_matrix_shows_counts_shares_and_cyrillic_labels() -> None:
    import matplotlib as mpl

    backend = mpl.get_backend()
    true, predicted = ["обувь"] * 3 + ["одежда"] * 4, ["обувь", "обувь", "одежда"] + ["одежда"] * 4
    figure = plot_confusion_matrix(evaluate(true, predicted, LABELS), "logreg")
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} == {"2\n67%", "1\n33%", "4\n100%"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == LABELS
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["обувь (3)", "одежда (4)", "посуда (0)", "нет товара (0)"]
    assert "n = 7" in axes.get_title()
    assert mpl.get_backend() == backend
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a letter that the font lacks is a warning
        figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
