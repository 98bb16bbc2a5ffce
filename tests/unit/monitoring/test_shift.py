"""Comparing a night with others: what chance and the nights themselves explain is no shift."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from reviewclf.monitoring.estimate import Calibrator, estimate_f1, weighted_f1
from reviewclf.monitoring.features import FeatureExtractor
from reviewclf.monitoring.shift import Sample, bursts, distance, sample, share_shift, shift


def drawn(rng: np.random.Generator, n: int, mean: float = 0.0) -> Sample:
    found = sample(rng.normal(mean, 1.0, n))
    assert found is not None
    return found


def test_p_values_of_equal_nights_are_no_smaller_than_they_say() -> None:
    rng = np.random.default_rng(0)
    p_values = [shift(drawn(rng, 100), [drawn(rng, 100) for _ in range(10)]).p_value for _ in range(1000)]
    for level in (0.05, 0.01):
        assert np.mean(np.array(p_values) < level) <= level + 3 * np.sqrt(level / 1000)


def test_nights_that_differ_by_nature_make_a_difference_of_that_size_usual() -> None:
    rng = np.random.default_rng(1)
    steady = [drawn(rng, 5000) for _ in range(20)]
    lively = [drawn(rng, 5000, mean) for mean in rng.normal(0, 0.2, 20)]
    tonight = drawn(rng, 5000, 0.3)
    assert shift(tonight, steady).p_value < 1e-6
    assert shift(tonight, lively).p_value > 0.05


def test_small_difference_between_big_nights_does_not_count_before_nights_were_seen() -> None:
    rng = np.random.default_rng(2)
    assert shift(drawn(rng, 1_000_000, 0.05), [drawn(rng, 1_000_000)]).p_value > 0.01


def test_ratio_of_sums_is_what_a_weighted_sample_says() -> None:
    found = sample(np.array([0.5, 0.1, 0.0]), np.array([2.0, 10.0, 0.0]))
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(2 / 12), 2)


@pytest.mark.parametrize("count", [0, 1])
def test_rare_class_that_happens_not_to_come_is_no_shift(count: int) -> None:
    assert share_shift(count, 500, [(1, 500)] * 10).p_value > 0.2


def test_share_that_falls_to_nothing_is_a_shift() -> None:
    found = share_shift(0, 500, [(150, 500), (140, 500), (160, 500), (155, 500)])
    assert found.p_value < 1e-6
    assert found.difference == pytest.approx(-0.3025, abs=0.001)


def test_distance_of_equal_clouds_is_small_and_of_moved_ones_their_distance() -> None:
    rng = np.random.default_rng(3)
    others = [rng.normal(size=(400, 8)) for _ in range(10)]
    near, p_near, _ = distance(rng.normal(size=(400, 8)), others)
    far, p_far, direction = distance(rng.normal(size=(400, 8)) + np.eye(8)[0], others)
    assert near < 0.2
    assert p_near > 0.01
    assert far == pytest.approx(1.0, abs=0.15)
    assert p_far < 1e-9
    assert int(np.abs(direction).argmax()) == 0


def test_burst_names_the_phrase_and_counts_all_phrases_as_looks() -> None:
    tonight = Counter(
        {"купон на следующую покупку": 15, "большое спасибо продавцу за": 5, **{f"фраза {n}": 1 for n in range(500)}}
    )
    phrase, rise, p_value = bursts(tonight, 300, {"большое спасибо продавцу за": 50}, 3000, min_share=0.01)
    assert phrase == "купон на следующую покупку"
    assert rise == pytest.approx(0.05)
    assert p_value < 1e-9
    assert (
        bursts(Counter({"раз и два и": 3}), 300, {}, 3000, min_share=0.01)[2]
        > bursts(tonight, 300, {}, 3000, min_share=0.01)[2]
    )


def test_lens_knows_what_training_had_and_what_is_one_letter_off() -> None:
    extractor = FeatureExtractor(["Красивое платье, хорошая ткань"] * 5 + ["Платье пришло быстро, ткань плотная"] * 45)
    read = extractor.read(["Красивое плтье из ткани", "Наушники хрипят", "nice dress", ""])
    assert read.unknown.tolist() == [3.0, 2.0, 2.0, 0.0]
    assert read.misspelt.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert read.foreign.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert extractor.unknown_words(["Красивое плтье", "плтье"], misspelt=True) == {"плтье": 2}


def test_own_features_are_made_as_if_each_review_were_new() -> None:
    extractor = FeatureExtractor(["платье село отлично", "платье маломерит", "платье"] * 1 + ["платье село"] * 20)
    assert extractor.own.unknown.tolist()[:3] == [1.0, 1.0, 0.0]


def test_estimate_of_honest_probabilities_is_what_labels_show() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet([0.3, 0.3, 0.3], size=4000)
    labels = (rng.random((4000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (labels[2000:], probabilities[2000:].argmax(axis=1)), 1)
    # Twice as sure as it has reason to be: the calibrator finds that out.
    sure = probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True)
    calibrator = Calibrator(sure[:2000], labels[:2000].astype(np.int64))
    assert calibrator.temperature == pytest.approx(2.0, abs=0.2)
    estimate = estimate_f1(sure[2000:], calibrator)
    assert estimate is not None
    assert estimate.low <= weighted_f1(confusion) <= estimate.high
    assert estimate.high - estimate.low < 0.08
    naive = estimate_f1(sure[2000:], Calibrator(sure[:0], labels[:0].astype(np.int64)))
    assert naive is not None
    assert naive.value > estimate.high
