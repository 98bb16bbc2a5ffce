"""Candidates, their training, and the classifiers that come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from reviewclf.training.candidates import Candidate
    from reviewclf.training.model import TextClassifier


def train_candidate(
    candidate: Candidate,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    classes: Sequence[str],
    stems: Mapping[str, list[str]] | None = None,
    seed: int,
) -> TextClassifier:
    """Train one entry of the candidates file, whatever its kind.

    Parameters
    ----------
    candidate : Candidate
        From :func:`reviewclf.training.candidates.load_candidates`.
    train, validation : DataFrame
        Columns ``text_clean``, ``label`` and ``weight``; choices are made on `validation`, which may be empty.
    classes : sequence of str
        All categories, in the order wanted for probabilities.
    stems : mapping of str to list of str, optional
        Keyword stems by category, for the kinds that use them.
    seed : int
        Of all randomness.

    Raises
    ------
    TrainingError
        The rows cannot be trained on, or the candidate's settings do not work out.
    """
    # One branch a kind, each importing what only it needs.
    from reviewclf.training.linear import train_linear

    return train_linear(candidate, train, validation, classes=classes, stems=stems, seed=seed)
