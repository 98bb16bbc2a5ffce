"""Forty nights on one store end as a correct reader, an honest purse and a fair judge would have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import forget_tracking_server
from tests.nights.diary import Diary
from tests.nights.llm import serving
from tests.nights.shop import HALF, NIGHTS

# More seeds make a longer campaign: REVIEWCLF_TEST_NIGHTS_SEEDS="1 2 3".
SEEDS = [int(seed) for seed in os.environ.get("REVIEWCLF_TEST_NIGHTS_SEEDS", "1").split()]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_paid_twice_in_forty_nights_and_the_same_seed_ends_in_the_same_tables(
    tmp_path: Path, seed: int
) -> None:
    first = lived(tmp_path / "first", seed, retrains=True)
    forget_tracking_server()
    again = lived(tmp_path / "again", seed, retrains=False, until=HALF)
    assert again[HALF] == first[HALF]


def lived(folder: Path, seed: int, *, retrains: bool, until: int = NIGHTS) -> dict[int, dict[str, str]]:
    """Digests of the tables in the middle and at the end."""
    folder.mkdir()
    with serving() as model:
        return Diary(folder, model, seed, retrains=retrains).live(until)
