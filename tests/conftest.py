"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture(scope="session", autouse=True)
def no_model_hub() -> Iterator[None]:
    """No test downloads the encoders of the bundled candidates file, not even where there is a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
