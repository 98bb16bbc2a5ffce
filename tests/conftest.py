"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real reviews beside the checkout; tests that need it are left out, with the reason, where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "reviews.csv").exists():
        pytest.skip("real reviews are not here: put reviews.csv, gold_reviews.csv and votes.csv into ../shared/data")
    return folder
