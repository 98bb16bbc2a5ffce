"""How many rows came, against what came before: like with like."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from reviewclf.errors import QualityError

# Volumes below it say nothing, whatever their ratio.
FEWEST_ROWS = 100
_MIN_HISTORY = 3


def comparable_nights(new_rows: int, history: Sequence[int]) -> list[int]:
    """The nights with which tonight's new rows are compared: all of `history`, or none where tonight brought few.

    Few new rows are no fault: a source may bring one review, and a second run on one day finds next to nothing. That a file
    has shrunk :func:`check_file` sees.
    """
    return list(history) if history and new_rows > median(history) else []


def check_file(name: str, rows: int, *, before: int | None, others: Sequence[int], max_ratio: float) -> None:
    """Refuse a file that has shrunk or grown out of all proportion.

    Parameters
    ----------
    name : str
        Its address.
    rows : int
        All its rows, known ones included.
    before : int or None
        Its rows when it was read last; None or 0 for a file that was never read or always empty.
    others : sequence of int
        Rows of other files that were read before, with which a new file is compared.
    max_ratio : float
        ``REVIEWCLF_QUALITY__MAX_VOLUME_RATIO``.

    Raises
    ------
    QualityError
        Names the file, what was expected and the setting.
    """
    if not rows:
        return
    if before:
        low = high = before
        said = f"it held {before:,} when it was read last"
    elif len(others) >= _MIN_HISTORY:
        # Many shops may share a folder: only a file far smaller than each of the others has lost its rows. That new files
        # bring far more than usual is seen when the night's new rows are counted.
        low, high = min(others), rows
        said = f"each of {len(others)} files before held {low:,} or more"
    else:
        return
    if (low >= FEWEST_ROWS and rows * max_ratio < low) or (rows >= FEWEST_ROWS and rows > high * max_ratio):
        raise QualityError(
            f"{name}: holds {rows:,} rows, but {said}; nothing was published. If the file is whole, set "
            f"REVIEWCLF_QUALITY__MAX_VOLUME_RATIO above {max(rows, low) / max(1, min(rows, low)):.0f} for this night"
        )
