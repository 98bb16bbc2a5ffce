"""Choosing hyper-parameters of an encoder by trials on validation rows (Optuna)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from reviewclf.errors import TrainingError
from reviewclf.training.candidates import EncoderCandidate, EncoderParams

logger = logging.getLogger(__name__)

_FILE = "search.json"
Trained = TypeVar("Trained")


def search(
    candidate: EncoderCandidate,
    train: Callable[[EncoderCandidate, Path | None], tuple[float, Trained]],
    *,
    seed: int,
    scratch: Path | None,
) -> tuple[EncoderCandidate, Trained, list[dict[str, float]]]:
    """Train a candidate several times, by what its ``search`` says, and keep the best.

    Parameters
    ----------
    candidate : EncoderCandidate
        With ``params.search``.
    train : callable
        Takes a candidate without a search and its scratch folder, and answers with weighted F1 on validation and what was
        trained.
    seed : int
        Of the sampler: equal seeds and scores lead to equal trials.
    scratch : Path or None
        Where finished trials are noted; a search that was killed goes on behind the last of them. Empty after success.

    Returns
    -------
    candidate : EncoderCandidate
        With the best parameters; the earlier trial on ties.
    trained : object
        Of `train`.
    trials : list of dict
        Parameters that were varied, and ``weighted_f1``.

    Raises
    ------
    TrainingError
        A trial's parameters contradict each other.
    """
    import optuna

    assert candidate.params.search is not None  # noqa: S101 - the caller's business
    space = candidate.params.search
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    known = _read(scratch)
    trials: list[dict[str, float]] = []
    best: tuple[float, int, EncoderCandidate, Trained | None] | None = None
    for number in range(space.trials):
        # The sampler sees the same scores as before the kill, so it asks the same questions.
        trial = study.ask(dict(space.distributions()))
        tried = candidate.model_copy(update={"params": _with(candidate, trial.params)})
        trained: Trained | None = None
        if number < len(known) and known[number]["params"] == trial.params:
            score = float(known[number]["weighted_f1"])
        else:
            known = known[:number]
            score, trained = train(tried, _folder(scratch, number))
            known.append({"params": trial.params, "weighted_f1": score})
            _write(scratch, known)
        study.tell(trial, score)
        trials.append({**trial.params, "weighted_f1": score})
        logger.info("candidate %s: trial %d of %d: %s", candidate.name, number + 1, space.trials, trials[-1])
        if best is None or score > best[0]:
            best = (score, number, tried, trained)
    assert best is not None  # noqa: S101 - there is at least one trial
    _, number, chosen, winner = best
    if winner is None:  # it was trained before the kill
        _, winner = train(chosen, _folder(scratch, number))
    if scratch is not None:
        (scratch / _FILE).unlink(missing_ok=True)
    return chosen, winner, trials


def _with(candidate: EncoderCandidate, values: dict[str, float]) -> EncoderParams:
    try:
        return EncoderParams.model_validate({**candidate.params.model_dump(exclude={"search"}), **values})
    except ValueError as error:
        raise TrainingError(f"candidate {candidate.name}: search: {values} cannot be trained with: {error}") from error


def _folder(scratch: Path | None, number: int) -> Path | None:
    return None if scratch is None else scratch / f"trial-{number}"


def _read(scratch: Path | None) -> list[dict[str, Any]]:
    if scratch is None or not (scratch / _FILE).exists():
        return []
    return list(json.loads((scratch / _FILE).read_text(encoding="utf-8")))


def _write(scratch: Path | None, trials: list[dict[str, Any]]) -> None:
    if scratch is None:
        return
    scratch.mkdir(parents=True, exist_ok=True)
    partial = scratch / f"{_FILE}.partial"
    partial.write_text(json.dumps(trials), encoding="utf-8")
    partial.replace(scratch / _FILE)
