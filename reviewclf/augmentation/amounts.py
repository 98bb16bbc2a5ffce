"""Do synthetic rows help, and how many? Chosen on real rows that the classifier did not see, never on gold."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel

from reviewclf.manifest import Manifest
from reviewclf.settings import AugmentationSettings
from reviewclf.training.candidates import Candidate
from reviewclf.training.features import Ngrams
from reviewclf.training.linear import LinearCandidate, LinearParams
from reviewclf.training.rows import TrainingJob

logger = logging.getLogger(__name__)

_DRAWS = 2000
# The choice costs a training per fold, class and amount; beyond this many real rows a sample decides as well.
_MOST_ROWS = 20_000
# Other classes may lose this much weighted F1 to the noise of another training.
_TOLERANCE = 0.005

Strings = NDArray[np.object_]


class Figure(BaseModel, frozen=True):
    """One amount on the curve: scores of the class on `n` real rows of it, with 95% bootstrap intervals.

    Attributes
    ----------
    amount : float
        Synthetic rows per real training row of the class.
    rows : int
        Synthetic rows that this makes.
    f1, recall : float
        Of the class; with their bounds.
    weighted_f1 : float
        Over all classes.
    certainty : float
        Share of paired bootstrap draws in which the class's recall is higher than without synthetic rows.
    """

    amount: float
    rows: int
    n: int
    f1: float
    f1_low: float
    f1_high: float
    recall: float
    recall_low: float
    recall_high: float
    weighted_f1: float
    certainty: float


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
    trial = _Trial(real, candidate, classes, stems, folds=options.folds, seed=seed)
    without = trial.predict(synthetic.iloc[:0])
    choices: list[Choice] = []
    chosen: list[pd.DataFrame] = []
    for category in [name for name in classes if name in set(synthetic["label"])]:
        rows = in_order(synthetic[synthetic["label"] == category], seed)
        n_real = int(((real["label"] == category) & ~real["hint"]).sum())
        curve = [trial.figure(category, without, without, amount=0.0, rows=0)]
        for size in sorted({min(len(rows), round(amount * n_real)) for amount in options.amounts} - {0}):
            amount = round(size / n_real, 4)
            curve.append(trial.figure(category, trial.predict(rows.iloc[:size]), without, amount=amount, rows=size))
        best = _best(curve, options.min_certainty)
        place, reason = list(classes).index(category), _reason(curve, best, options)
        choices.append(Choice(id=place, category=category, amount=best.amount, rows=best.rows, reason=reason, curve=curve))
        chosen.append(rows.iloc[: best.rows])
    used = [choice for choice in choices if choice.rows]
    if len(used) > 1:
        together = trial.predict(pd.concat(chosen))
        if trial.weighted_f1(together) < trial.weighted_f1(without) - _TOLERANCE:
            reason = (
                f"together the chosen amounts lower the weighted F1 from {trial.weighted_f1(without):.3f} to "
                f"{trial.weighted_f1(together):.3f}: none is used"
            )
            choices = [choice.model_copy(update={"amount": 0.0, "rows": 0, "reason": reason}) for choice in choices]
    return choices


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """The first linear candidate; one with the bundled settings where there is none."""
    linear = next((candidate for candidate in candidates if candidate.kind == "linear"), None)
    if linear is not None:
        return linear
    params = LinearParams(
        estimator="logistic_regression",
        C=30.0,
        class_weight_power=0.5,
        word=Ngrams(ngram_range=(1, 2), min_df=2, max_features=30_000),
        char=Ngrams(ngram_range=(2, 4), min_df=2, max_features=60_000, sublinear_tf=True),
        stem_weight=0.5,
        calibration="none",
    )
    return LinearCandidate(name="logreg", kind="linear", params=params)


def in_order(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows in the order in which they are taken: by a seeded hash of the text, so that a smaller amount is part of a larger."""
    order = [_shuffled(f"{seed}\x00{key}") for key in rows["text_hash"]]
    return rows.assign(_order=order).sort_values(["_order", "text_hash"], kind="stable").drop(columns="_order")


def _shuffled(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


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
    draws = np.random.default_rng(seed).multinomial(len(pairs), cells / len(pairs), size=_DRAWS)
    figures: dict[str, float] = {"n": float(len(pairs))}
    for name, weights in (("with", [0, 0, 1, 1]), ("without", [0, 1, 0, 1]), ("difference", [0, -1, 1, 0])):
        figures |= _with_interval(name, cells @ np.array(weights) / len(pairs), draws @ np.array(weights) / len(pairs))
    return figures


def _with_interval(name: str, value: float, draws: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


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


class _Trial:
    """Out-of-fold predictions on the real rows, with any synthetic rows added to what is trained on."""

    def __init__(
        self,
        real: pd.DataFrame,
        candidate: Candidate,
        classes: Sequence[str],
        stems: Mapping[str, list[str]],
        *,
        folds: int,
        seed: int,
    ) -> None:
        self._real = real.reset_index(drop=True)
        self._candidate, self._classes, self._stems, self._seed = candidate, list(classes), stems, seed
        self._fold = _folds(self._real, folds, seed)
        self._folds = folds
        self._judged = (~self._real["hint"]).to_numpy(dtype=bool) if not self._real["hint"].all() else np.ones(len(real), bool)
        self._true = self._real["label"].to_numpy(dtype=object)[self._judged]

    def predict(self, synthetic: pd.DataFrame) -> Strings:
        """The label predicted for each judged row."""
        predicted = np.full(len(self._real), "", dtype=object)
        columns = ["text_clean", "label", "weight"]
        for k in range(self._folds):
            held = (self._fold == k) & self._judged
            if not held.any():
                continue
            shown = set(self._real.loc[self._fold == k, "text_hash"])
            free = [not shown.intersection(examples) for examples in synthetic["examples"]]
            train = pd.concat([self._real.loc[self._fold != k, columns], synthetic.loc[free, columns]], ignore_index=True)
            # What is held out decides on amounts; settings are not searched for on it.
            none = train.iloc[:0]
            job = TrainingJob(train, none, classes=self._classes, stems=self._stems, seed=self._seed)
            predicted[held] = self._candidate.train(job).predict(self._real.loc[held, "text_clean"].tolist())
        judged: Strings = predicted[self._judged]
        return judged

    def weighted_f1(self, predicted: Strings) -> float:
        """Over all classes."""
        from sklearn.metrics import f1_score

        return float(f1_score(self._true.tolist(), predicted.tolist(), average="weighted", zero_division=0))

    def figure(self, category: str, predicted: Strings, without: Strings, *, amount: float, rows: int) -> Figure:
        """Scores of one class."""
        true = self._true == category
        cells = np.bincount(4 * true + 2 * (predicted == category) + (without == category), minlength=8)
        draws = np.random.default_rng(self._seed).multinomial(len(true), cells / len(true), size=_DRAWS)
        f1, recall = _scores(draws, _WITH)
        (f1_here,), (recall_here,) = _scores(cells[None], _WITH)
        return Figure(
            amount=amount,
            rows=rows,
            n=int(true.sum()),
            **_with_interval("f1", f1_here, f1),
            **_with_interval("recall", recall_here, recall),
            weighted_f1=self.weighted_f1(predicted),
            certainty=float(np.mean(recall > _scores(draws, _WITHOUT)[1])),
        )


# Cells are numbered 4 * (true) + 2 * (predicted with) + (predicted without).
_WITH, _WITHOUT = 2, 1


def _scores(cells: NDArray[np.int64], which: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 and recall of each row of cell counts, shape (m, 8)."""
    number = np.arange(8)
    is_true, is_predicted = number >= 4, (number & which) > 0
    found, lost, extra = (
        cells[:, chosen].sum(axis=1) for chosen in (is_true & is_predicted, is_true & ~is_predicted, ~is_true & is_predicted)
    )
    return 2 * found / np.maximum(1, 2 * found + lost + extra), found / np.maximum(1, found + lost)


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


def _folds(real: pd.DataFrame, folds: int, seed: int) -> NDArray[np.intp]:
    """Fold of each row: whole groups, each class spread evenly."""
    first = real.drop_duplicates("group")
    order = [_shuffled(f"folds\x00{seed}\x00{group}") for group in first["group"]]
    ranked = first.assign(_order=order).sort_values(["label", "_order"], kind="stable")
    numbers = dict(zip(ranked["group"], np.arange(len(ranked)) % folds, strict=True))
    return np.array([numbers[group] for group in real["group"]], dtype=np.intp)


def _sampled(real: pd.DataFrame, wanted: set[Any], seed: int) -> pd.DataFrame:
    """All rows of the classes wanted, and of the others as many as are affordable, each class by its share."""
    if len(real) <= _MOST_ROWS:
        return real
    own = real["label"].isin(wanted)
    share = max(0.0, _MOST_ROWS - int(own.sum())) / max(1, int((~own).sum()))
    taken = np.array([int(_shuffled(f"{seed}\x00{group}")[:8], 16) / 2**32 < share for group in real["group"]])
    sampled: pd.DataFrame = real[own.to_numpy() | taken]
    return sampled


def choices_of(dataset: Manifest) -> list[Choice]:
    """What was chosen for each thin class of a dataset."""
    entries: Any = dataset.details.get("augmentation") or []
    return [Choice.model_validate(entry) for entry in entries]
