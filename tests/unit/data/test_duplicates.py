from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.data.duplicates import (
    _Search,
    match_near_duplicates,
    near_duplicate_groups,
    near_duplicate_pairs,
)
from reviewclf.text import comparison_form, text_hash

TYPO = ("Платье хорошее, но маломерит на размер.", "Платье хорошее, но моломерит на размер.")
LONG = "Пальто пришло за две недели, упаковано хорошо, швы ровные, сидит на мой рост отлично"
DIFFERENT = [
    "Спасибо продавцу, доставка быстрая, платье село идеально на 44 размер",
    "Спасибо продавцу, доставка быстрая, чайник закипает за три минуты",
    "Спасибо продавцу, доставка быстрая, а вот кроссовки жмут в носке",
    "хорошее платье",
    "хорошая платье и туфли",
    "юбка супер",
    "шубка супер",
    "ок",
    "!!!",
    "???",
    "",
]


def jaccard(first: str, second: str) -> float:
    """Similarity of trigram sets, written without the package's tricks."""
    left, right = trigrams(first), trigrams(second)
    return len(left & right) / len(left | right)


def trigrams(text: str) -> set[str]:
    form = f"^^{comparison_form(text)}$$"
    return {form[i : i + 3] for i in range(len(form) - 2)}


@pytest.fixture(scope="module")
def real_reviews(shared_data: Path) -> list[str]:
    with (shared_data / "reviews.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def with_edits(text: str, edits: int, generator: random.Random) -> str:
    letters = list(text)
    for _ in range(edits):
        letters[generator.randrange(len(letters))] = generator.choice("абвгдежз ")
    return "".join(letters)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        TYPO,
        (LONG, LONG.upper().replace(",", "!!!")),
        (LONG, LONG.replace("отлично", "очень отлично")),
        (LONG, "Синее " + LONG),
        ("все хорошо", "Всё хорошо!"),
        ("Ок", "ок!"),
        ("!!!", " !!!"),
        ("ок", "оk"),
        ("", " "),
    ],
)
def test_small_changes_are_near_duplicates(first: str, second: str) -> None:
    assert near_duplicate_pairs([first, second]).tolist() == [[0, 1]]
    assert len(set(near_duplicate_groups([first, second]))) == 1
    assert match_near_duplicates([first], [second]) == [0]


def test_reviews_that_share_a_stock_phrase_are_different() -> None:
    assert near_duplicate_pairs(DIFFERENT).tolist() == []
    assert len(set(near_duplicate_groups(DIFFERENT))) == len(DIFFERENT)


def test_pairs_are_those_of_exact_similarity() -> None:
    generator = random.Random(7)
    vocabulary = ["платье", "юбка", "сапоги", "размер", "цвет", "ткань", "шов", "очень", "не", "хорошо"]
    originals = [" ".join(generator.choices(vocabulary, k=14)) for _ in range(40)]
    texts = [with_edits(text, edits, generator) for text in originals for edits in (0, 1, 2, 4, 6)]
    for similarity in (0.5, 0.7, 0.9):
        expected = [[i, j] for i, j in combinations(range(len(texts)), 2) if jaccard(texts[i], texts[j]) >= similarity]
        found = near_duplicate_pairs(texts, similarity=similarity).tolist()
        assert [pair for pair in found if pair not in expected] == []
        assert len(found) >= 0.99 * len(expected) > 20


def test_at_least_95_percent_of_pairs_just_above_the_threshold_are_found(real_reviews: list[str]) -> None:
    generator = random.Random(11)
    first, second = [], []
    for text in real_reviews:
        if len(text) >= 40:
            for letters in (18, 20, 22):
                changed = with_edits(text, len(text) // letters, generator)
                if 0.7 <= jaccard(text, changed) < 0.74:
                    first.append(text)
                    second.append(changed)
    assert len(first) > 200
    texts = first + second
    found = {tuple(pair) for pair in near_duplicate_pairs(texts).tolist()}
    recall = np.mean([(i, i + len(first)) in found for i in range(len(first))])
    assert recall >= 0.95
    matches = match_near_duplicates(second, first)
    # Several changed forms of one review may stand before each other, so the first match is at or before its original.
    assert np.mean([match is not None and match <= i for i, match in enumerate(matches)]) >= 0.95


@pytest.mark.slow
def test_pairs_of_real_reviews_are_exact_and_complete(real_reviews: list[str]) -> None:
    texts = real_reviews[:500]
    expected = {
        pair
        for pair in combinations(range(len(texts)), 2)
        if comparison_form(texts[pair[0]]) == comparison_form(texts[pair[1]])
    }
    sets = [trigrams(text) for text in texts]
    for i, j in combinations(range(len(texts)), 2):
        common = len(sets[i] & sets[j])
        if common and common >= 0.7 * (len(sets[i]) + len(sets[j]) - common):
            expected.add((i, j))
    found = {tuple(pair) for pair in near_duplicate_pairs(texts).tolist()}
    assert found <= expected
    assert len(found) >= 0.95 * len(expected) > 0


def test_pairs_are_ordered_and_copies_are_all_paired() -> None:
    pairs = near_duplicate_pairs(["а б в", "шапка", "А, б: в!", "шапка", "а б в"])
    assert pairs.dtype == np.int64
    assert pairs.tolist() == [[0, 2], [0, 4], [1, 3], [2, 4]]
    assert near_duplicate_pairs([]).shape == (0, 2) == near_duplicate_pairs(["одна"]).shape


def test_groups_follow_chains_and_are_named_by_their_smallest_hash() -> None:
    # Words come one by one: neighbours are near-duplicates, the ends are not.
    words = ["синее", "платье", "пришло", "быстро", "ткань", "приятная", "швы", "ровные", "сидит", "хорошо", "цвет", "яркий"]
    words += ["рукав", "длинный", "воротник"]
    chain = [" ".join(words[i : i + 11]) for i in range(5)]
    assert jaccard(chain[0], chain[4]) < 0.7 <= min(jaccard(a, b) for a, b in pairwise(chain))
    assert near_duplicate_groups(chain) == [min(map(text_hash, chain))] * 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*TYPO, LONG, "Синее " + LONG, LONG.lower(), *DIFFERENT]), max_size=14), st.randoms())
def test_groups_do_not_depend_on_order(texts: list[str], generator: random.Random) -> None:
    groups = dict(zip(texts, near_duplicate_groups(texts), strict=True))
    shuffled = texts[:]
    generator.shuffle(shuffled)
    assert dict(zip(shuffled, near_duplicate_groups(shuffled), strict=True)) == groups


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*TYPO, LONG, "Синее " + LONG, *DIFFERENT]), max_size=8),
    st.lists(st.sampled_from([*TYPO, LONG, LONG.upper(), *DIFFERENT]), max_size=8),
)
def test_match_is_the_first_reference_that_pairs(texts: list[str], references: list[str]) -> None:
    pairs = near_duplicate_pairs([*references, *texts]).tolist()
    expected = [
        min((i for i, j in pairs if j == len(references) + position and i < len(references)), default=None)
        for position in range(len(texts))
    ]
    assert match_near_duplicates(texts, references) == expected


def test_thousands_of_reviews_from_one_template_do_not_cost_their_square() -> None:
    texts = [f"Отличное платье, всё понравилось, спасибо продавцу, заказ номер {i}" for i in range(4_000)]
    start = time.perf_counter()
    assert len(set(near_duplicate_groups(texts))) == 1
    assert match_near_duplicates(texts, texts[:500])[-1] == 0
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("references_are_texts", [True, False])
def test_pairs_that_matching_looks_at_grow_like_the_reviews_of_a_template(
    monkeypatch: pytest.MonkeyPatch, references_are_texts: bool
) -> None:
    looked_at = 0
    candidates = _Search.candidates

    def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal looked_at
        for first, second in candidates(*arguments, **options):
            looked_at += len(first)
            yield first, second

    monkeypatch.setattr(_Search, "candidates", counted)
    counts = []
    for size in (1_250, 5_000):
        generator, looked_at = random.Random(3), 0
        texts = [
            f"Товар {generator.randrange(10**6)} пришёл вовремя, размер {generator.randrange(36, 60)}, цвет как на фото"
            for _ in range(size)
        ]
        found = match_near_duplicates(texts, texts if references_are_texts else texts[::-2])
        assert sum(match is None for match in found) < size / 50
        counts.append(looked_at)
    assert counts[1] < 8 * counts[0], "four times as many reviews, sixteen times as many pairs"


def test_verdict_on_a_pair_does_not_depend_on_other_texts(real_reviews: list[str]) -> None:
    texts = real_reviews[:1_500]
    pairs = near_duplicate_pairs(texts).tolist()
    assert pairs
    for i, j in pairs:
        assert near_duplicate_pairs([texts[j], texts[i]]).tolist() == [[0, 1]]


@pytest.mark.parametrize("similarity", [0.0, -1.0, 1.1])
def test_similarity_outside_its_range_is_refused(similarity: float) -> None:
    with pytest.raises(ValueError, match="similarity"):
        near_duplicate_pairs(["а", "б"], similarity=similarity)


def test_similarity_of_one_keeps_equal_trigram_sets_only() -> None:
    assert near_duplicate_pairs([LONG, LONG.upper(), *TYPO], similarity=1.0).tolist() == [[0, 1]]
