"""Do synthetic rows help, and how many? Chosen on real rows that the classifier did not see, never on gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from reviewclf.augmentation.held_out import DRAWS, Figure, HeldOutRows, shuffled, with_interval
from reviewclf.manifest import Manifest
from reviewclf.settings import AugmentationSettings
from reviewclf.training.candidates import Candidate, load_candidates

# The choice costs a training per fold, class and amount; beyond this many real rows a sample decides as well.
_MOST_ROWS = 20_000
# Other classes may lose this much weighted F1 to the noise of another training.
_TOLERANCE = 0.005


class Choice(BaseModel, frozen=True):
    """How many synthetic rows a class gets, why, and the curve that says so; the first figure is that without any.

    `id` is the class's position in the taxonomy.
    """

    id: int
    category: str
    amount: float
    rows: int
    reason: str
    curve: list[Figure]


def choose_amounts(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    candidate: Candidate,
    *,
    classes: Sequence[str],
    stems: Mapping[str, list[str]],
    options: AugmentationSettings,
    seed: int,
) -> list[Choice]:
    """Compare amounts class by class, then all chosen ones together.

    Real rows are held out part by part, whole groups of near-duplicates at a time, and scored by a classifier that was trained
    on the other parts and the synthetic rows; synthetic rows whose writer was shown a held-out row stay away. What a thin class
    lacks is recall. An amount is used if the class's recall is higher with it in ``options.min_certainty`` of the bootstrap
    draws, its F1 is not lower, and the weighted F1 over all classes is lower by no more than 0.005, which another training
    costs as well; of several, the one with the highest recall, the smaller one on ties.

    Parameters
    ----------
    real : DataFrame
        Train and validation rows: ``text_clean``, ``text_hash``, ``label``, ``weight``, ``group``, ``hint``. Hints train, they
        are not scored.
    synthetic : DataFrame
        ``text_clean``, ``text_hash``, ``label``, ``weight``, ``examples`` (text hashes that the writer was shown).
    candidate : Candidate
        The classifier; see :func:`cheapest`.
    classes : sequence of str
        All categories.
    stems : mapping of str to list of str
        Keyword stems.
    options : AugmentationSettings
        ``amounts``, ``folds``, ``min_certainty``.
    seed : int
        Of folds, orders and training.

    Returns
    -------
    list of Choice
        One for each class of `synthetic`, in the order of `classes`.
    """
    real = _sampled(real, set(synthetic["label"]), seed)
    held_out = HeldOutRows(real, candidate, classes, stems, options.folds, seed)
    without = held_out.predict(synthetic.iloc[:0])
    choices: list[Choice] = []
    chosen: list[pd.DataFrame] = []
    for category in [name for name in classes if name in set(synthetic["label"])]:
        rows = in_order(synthetic[synthetic["label"] == category], seed)
        n_real = int(((real["label"] == category) & ~real["hint"]).sum())
        curve = [held_out.figure(category, without, without, amount=0.0, rows=0)]
        for size in sorted({min(len(rows), round(amount * n_real)) for amount in options.amounts} - {0}):
            amount = round(size / n_real, 4)
            curve.append(held_out.figure(category, held_out.predict(rows.iloc[:size]), without, amount=amount, rows=size))
        best = _best(curve, options.min_certainty)
        place, reason = list(classes).index(category), _reason(curve, best, options)
        choices.append(Choice(id=place, category=category, amount=best.amount, rows=best.rows, reason=reason, curve=curve))
        chosen.append(rows.iloc[: best.rows])
    used = [choice for choice in choices if choice.rows]
    if len(used) > 1:
        together = held_out.predict(pd.concat(chosen))
        if held_out.weighted_f1(together) < held_out.weighted_f1(without) - _TOLERANCE:
            reason = (
                f"together the chosen amounts lower the weighted F1 from {held_out.weighted_f1(without):.3f} to "
                f"{held_out.weighted_f1(together):.3f}: none is used"
            )
            choices = [choice.model_copy(update={"amount": 0.0, "rows": 0, "reason": reason}) for choice in choices]
    return choices


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """The first linear candidate; the first bundled one where there is none."""
    bundled = load_candidates(str(resources.files("reviewclf").joinpath("candidates.yaml")))
    return next(candidate for candidate in (*candidates, *bundled) if candidate.kind == "linear")


def in_order(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows in the order in which they are taken: by a seeded hash of the text, so that a smaller amount is part of a larger."""
    order = [shuffled(f"{seed}\x00{key}") for key in rows["text_hash"]]
    return rows.assign(_order=order).sort_values(["_order", "text_hash"], kind="stable").drop(columns="_order")


def recall_on(
    true: Sequence[str], with_rows: Sequence[str], without: Sequence[str], category: str, *, seed: int = 0
) -> dict[str, float]:
    """Recall of a class with and without synthetic rows on the same judged rows, and their difference, with 95% intervals.

    Returns
    -------
    dict
        ``n`` rows of the class; ``with``, ``without``, ``difference``, each also ``_low`` and ``_high``. Empty where n is 0.
    """
    pairs = [(w == category, o == category) for t, w, o in zip(true, with_rows, without, strict=True) if t == category]
    if not pairs:
        return {}
    cells = np.bincount([2 * w + o for w, o in pairs], minlength=4)
    draws = np.random.default_rng(seed).multinomial(len(pairs), cells / len(pairs), size=DRAWS)
    figures: dict[str, float] = {"n": float(len(pairs))}
    for name, weights in (("with", [0, 0, 1, 1]), ("without", [0, 1, 0, 1]), ("difference", [0, -1, 1, 0])):
        figures |= with_interval(name, cells @ np.array(weights) / len(pairs), draws @ np.array(weights) / len(pairs))
    return figures


def curve_table(choices: Sequence[Choice]) -> str:
    """The curves as a table for logs and for MLflow."""
    head = "| class | synthetic rows | per real row | F1 on real rows held out | recall | n | weighted F1 | better in | |"
    lines = [head, "|---|---:|---:|---|---|---:|---:|---:|---|"]
    for choice in choices:
        for figure in choice.curve:
            certainty = f"{figure.certainty:.0%}" if figure.rows else ""
            lines.append(
                f"| {choice.category} | {figure.rows} | {figure.amount:g} "
                f"| {figure.f1:.3f} ({figure.f1_low:.3f} to {figure.f1_high:.3f}) "
                f"| {figure.recall:.3f} ({figure.recall_low:.3f} to {figure.recall_high:.3f}) "
                f"| {figure.n} | {figure.weighted_f1:.4f} | {certainty} | {'used' if figure.rows == choice.rows else ''} |"
            )
    lines.extend(["", *(f"{choice.category}: {choice.reason}." for choice in choices)])
    return "\n".join(lines)


def _best(curve: Sequence[Figure], min_certainty: float) -> Figure:
    without = curve[0]

    def helps(figure: Figure) -> bool:
        costs_others = figure.weighted_f1 < without.weighted_f1 - _TOLERANCE
        is_better = figure.recall > without.recall and figure.certainty >= min_certainty
        return is_better and figure.f1 >= without.f1 and not costs_others

    return max(filter(helps, curve[1:]), key=lambda figure: (figure.recall, -figure.rows), default=without)


def _reason(curve: Sequence[Figure], best: Figure, options: AugmentationSettings) -> str:
    if len(curve) == 1:
        return "no synthetic row passed the filters"
    without = curve[0]
    shown = best if best.rows else max(curve[1:], key=lambda figure: (figure.recall, figure.f1))
    told = (
        f"{shown.rows} synthetic rows change its recall on {shown.n} real rows held out from {without.recall:.3f} to "
        f"{shown.recall:.3f} (higher in {shown.certainty:.0%} of the bootstrap draws), its F1 from {without.f1:.3f} to "
        f"{shown.f1:.3f} and the weighted F1 from {without.weighted_f1:.4f} to {shown.weighted_f1:.4f}"
    )
    return told if best.rows else f"none is used: {told}; {options.min_certainty:.0%} and no loss are asked for"


def _sampled(real: pd.DataFrame, wanted: set[Any], seed: int) -> pd.DataFrame:
    """All rows of the classes wanted, and of the others as many as are affordable, each class by its share."""
    if len(real) <= _MOST_ROWS:
        return real
    own = real["label"].isin(wanted)
    share = max(0.0, _MOST_ROWS - int(own.sum())) / max(1, int((~own).sum()))
    taken = np.array([int(shuffled(f"{seed}\x00{group}")[:8], 16) / 2**32 < share for group in real["group"]])
    sampled: pd.DataFrame = real[own.to_numpy() | taken]
    return sampled


def choices_of(dataset: Manifest) -> list[Choice]:
    """What was chosen for each thin class of a dataset."""
    entries: Any = dataset.details.get("augmentation") or []
    return [Choice.model_validate(entry) for entry in entries]
