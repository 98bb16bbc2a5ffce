"""Near-duplicates found through sketches are those that comparing all texts finds."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf import tables
from reviewclf.data import bands, sketches
from reviewclf.data.duplicates import match_near_duplicates, near_duplicate_pairs
from reviewclf.data.lookups import BATCH_ROWS
from reviewclf.data.sketches import PairSearch, Sketches, first_near_duplicates
from reviewclf.store import Store
from reviewclf.text import text_hash
from tests.benchmarks import load_reviews
from tests.benchmarks.dataset import perturbed


@pytest.fixture(scope="module")
def texts() -> list[str]:
    reviews, _ = load_reviews()
    made = perturbed([" ".join(text.split()) for text in reviews if text.strip()][:300], 900)
    made += [" ".join(text.replace(" ", "")) for text in made[:10]]
    random.Random(2).shuffle(made)
    return list({text_hash(text): text for text in made}.values())


def clean_part(store: Store, texts: list[str], start: int = 0) -> list[str]:
    rows = [
        {"review_id": f"r{start + n}", "text": text, "text_clean": text, "text_hash": text_hash(text), "source": "a.csv"}
        for n, text in enumerate(texts)
    ]
    return store.put_part(pa.Table.from_pylist(rows, schema=tables.CLEAN_SCHEMA))


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.95, 1.0])
def test_no_pair_of_near_duplicates_falls_to_the_bounds(texts: list[str], similarity: float) -> None:
    every = Sketches.of(texts, similarity)
    possible = {
        pair
        for chunk in PairSearch(every, similarity).pairs(every)
        for pair in zip(*(side.tolist() for side in chunk), strict=True)
    }
    wanted = set(map(tuple, near_duplicate_pairs(texts, similarity=similarity).tolist()))
    assert wanted
    assert wanted <= possible
    assert len(possible) < len(texts) + 20 * len(wanted)


def test_sketches_are_read_as_they_were_written(texts: list[str]) -> None:
    made = Sketches.of(texts, 0.7)
    rows = made.to_table([text_hash(text) for text in texts], 0.7)
    for read in (Sketches.from_table(rows), Sketches.from_table(pa.concat_tables([rows.slice(0, 7), rows.slice(7)]))):
        assert all(np.array_equal(*pair) for pair in zip(made, read, strict=True))
    part = Sketches.from_table(rows.slice(5, 9))
    assert all(np.array_equal(whole[5:14], cut) for whole, cut in zip(made, part, strict=True))


def test_the_first_reference_is_found_in_any_order_of_the_pairs(texts: list[str]) -> None:
    references = [texts[3] + "!", texts[0], texts[3], texts[1]]
    first, second = np.array([1, 0, 0, 0, 0, 2]), np.array([1, 3, 2, 1, 0, 3])
    assert first_near_duplicates([texts[3], texts[0], texts[5]], references, first, second) == [0, 1, None]


def recorded(
    store: Store, texts: list[str], cut: int, patch: pytest.MonkeyPatch, rows: int = BATCH_ROWS, **limits: int
) -> dict[str, str]:
    """What is found of the texts from `cut` on, those before being in the store."""
    for name, value in limits.items():
        patch.setattr(sketches if name == "_PAIRS" else bands, name, value)
    batches = bands.batches
    patch.setattr(
        bands, "batches", lambda store, keys, count=rows, columns=None: batches(store, keys, min(count, rows), columns)
    )
    held = clean_part(store, texts[:cut])
    if held:
        store.commit(store.snapshot(), key="earlier", append={"clean": held})
    found = bands.find_near_duplicates(store, store.snapshot(), clean_part(store, texts[cut:], cut), 0.7)
    store.commit(store.snapshot(), key="night", append={"bands": found.bands}, replace={"bands": found.stored_bands})
    rows_found = store.read_table(found.rows).to_pylist()
    assert len(rows_found) == found.found
    hashes = {text_hash(text) for text in texts}
    held_bands = store.read(store.snapshot(), "bands", ["text_hash"])["text_hash"].to_pylist()
    assert sorted(held_bands) == sorted(hashes)
    return {row["review_id"]: row["near_duplicate_of"] for row in rows_found}


@pytest.mark.parametrize(
    "limits", [{}, {"rows": 100}, {"rows": 100, "_PAIRS": 50, "_WAITING": 20}, {"_KNOWN_ROWS": 64, "_WAITING": 1}]
)
@pytest.mark.parametrize("cut", [0, 400])
def test_batches_and_the_table_find_what_comparing_all_texts_finds(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], cut: int
) -> None:
    matches = match_near_duplicates(texts, texts)
    wanted = {
        f"r{place}": text_hash(texts[match])
        for place, match in enumerate(matches)
        if place >= cut and match is not None and match < place
    }
    assert wanted
    with monkeypatch.context() as patch:
        assert recorded(Store(str(tmp_path / "store")), texts, cut, patch, **limits) == wanted


def test_thousands_of_new_reviews_from_a_known_template_find_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [f"Товар {n:05d} пришёл вовремя, размер {n % 24 + 36}, цвет как на фото, советую" for n in range(2_000)]
    found = recorded(Store(str(tmp_path / "store")), made, 1_000, monkeypatch, _PAIRS=50_000, _WAITING=20_000)
    assert len(found) == 1_000


def test_another_similarity_makes_the_bands_anew(texts: list[str], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    held = clean_part(store, texts[:200])
    first = bands.find_near_duplicates(store, store.snapshot(), held, 0.7)
    store.commit(store.snapshot(), key="night", append={"clean": held, "bands": first.bands})
    new = clean_part(store, texts[200:300], 200)
    same = bands.find_near_duplicates(store, store.snapshot(), new, 0.7)
    assert same.stored_bands == store.snapshot().keys("bands")
    other = bands.find_near_duplicates(store, store.snapshot(), new, 0.5)
    (part,) = other.stored_bands
    assert [part] != store.snapshot().keys("bands")
    assert store.read_table([part]).num_rows == 200
    matches = match_near_duplicates(texts[:300], texts[:300], similarity=0.5)
    wanted = {f"r{place}" for place, match in enumerate(matches) if place >= 200 and match is not None and match < place}
    assert set(store.read_table(other.rows)["review_id"].to_pylist()) == wanted


words = st.lists(st.sampled_from(["плед", "мягкий", "тёплый", "большой", "и", "не", "очень"]), min_size=1, max_size=6).map(
    " ".join
)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=12, unique=True))
def test_short_texts_fall_to_no_bound(few: list[str]) -> None:
    every = Sketches.of(few, 0.7)
    possible = {
        pair for chunk in PairSearch(every, 0.7).pairs(every) for pair in zip(*(side.tolist() for side in chunk), strict=True)
    }
    assert set(map(tuple, near_duplicate_pairs(few).tolist())) <= possible
