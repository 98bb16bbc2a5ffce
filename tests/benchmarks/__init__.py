"""Measurements of speed: ``python -m tests.benchmarks`` runs every module here that defines ``measure()``, or those named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

ROOT = Path(__file__).resolve().parents[2]
REAL_REVIEWS = ROOT.parent / "shared" / "data" / "reviews.csv"
SAMPLE_REVIEWS = ROOT / "reviewclf" / "sample" / "reviews.csv"


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes
    ----------
    name : str
        What was measured.
    rows : int
        Rows that each run worked through.
    baseline : float or None
        Rows per second of what it is compared with; None where there is no such thing.
    ours : float
        Rows per second of the package.
    note : str
        On which data, against what.
    target : float or None
        Ratio that has to be reached.
    """

    name: str
    rows: int
    baseline: float | None
    ours: float
    note: str = ""
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.baseline is None else self.ours / self.baseline

    @property
    def missed(self) -> bool:
        return self.target is not None and self.ratio is not None and self.ratio < self.target


def load_reviews() -> tuple[list[str], str]:
    """Real reviews where they lie beside the checkout, else the bundled sample; and which of the two it was."""
    for path, name in ((REAL_REVIEWS, "real reviews"), (SAMPLE_REVIEWS, "bundled sample, real reviews are not here")):
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                return [row["text"] for row in csv.DictReader(file)], name
    raise FileNotFoundError(f"no reviews to measure on: neither {REAL_REVIEWS} nor {SAMPLE_REVIEWS} exists")


def interleaved(baseline: Callable[[], object], ours: Callable[[], object], *, repeats: int = 7) -> tuple[float, float]:
    """Median seconds of both, run in turns so that a busy machine slows both alike; the first turn only warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for times, function in zip(seconds, (baseline, ours), strict=True):
            start = perf_counter()
            function()
            if turn:
                times.append(perf_counter() - start)
    return median(seconds[0]), median(seconds[1])
