"""Choosing hyper-parameters of an encoder by trials on validation rows (Optuna)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from reviewclf.errors import TrainingError
from reviewclf.training.encoder_params import EncoderParams
from reviewclf.training.rows import TrainingJob

logger = logging.getLogger(__name__)

_FILE = "search.json"


T = TypeVar("T")


def search(
    title: str, params: EncoderParams, fine_tune: Callable[[str, EncoderParams, TrainingJob], T], job: TrainingJob
) -> tuple[EncoderParams, T, list[dict[str, Any]]]:
    """Fine-tune several times, as ``params.search`` says, and keep the best.

    Finished trials are noted in the job's scratch folder: a search that was killed goes on behind the last of them.

    Parameters
    ----------
    title : str
        What messages begin with.
    fine_tune : callable
        Takes title, settings without a search and a job; its answer has a ``history``.

    Returns
    -------
    params : EncoderParams
        The best ones; of the earlier trial on ties.
    tuned : object
        Of `fine_tune`.
    trials : list of dict
        Parameters that were varied, and ``weighted_f1``.

    Raises
    ------
    TrainingError
        A trial's parameters contradict each other.
    """
    import optuna

    assert params.search is not None  # noqa: S101 - the caller's business
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=job.seed))
    trials = _read(job.checkpoints)
    done = len(trials)
    best: tuple[float, int, T | None] = (-1.0, 0, None)

    def run(number: int) -> T:
        # The epochs of trials would mix with each other; those of the best are told at the end.
        folder = None if job.checkpoints is None else job.checkpoints / f"trial-{number}"
        return fine_tune(title, _with(title, params, trials[number]), replace(job, checkpoints=folder, on_epoch=None))

    for number in range(params.search.trials):
        # The sampler sees the same scores as before a kill, so it asks the same questions.
        trial = study.ask(params.search.distributions())
        tuned: T | None = None
        if number >= done:
            trials.append(dict(trial.params))
            tuned = run(number)
            trials[number]["weighted_f1"] = max(entry.get("weighted_f1", 0.0) for entry in tuned.history)  # type: ignore[attr-defined]
            _write(job.checkpoints, trials)
        score = trials[number]["weighted_f1"]
        study.tell(trial, score)
        logger.info("%s: trial %d of %d: %s", title, number + 1, params.search.trials, trials[number])
        if score > best[0]:
            best = (score, number, tuned)
    _, number, winner = best
    if winner is None:  # it was trained before the kill
        winner = run(number)
    if job.checkpoints is not None:
        (job.checkpoints / _FILE).unlink(missing_ok=True)
    return _with(title, params, trials[number]), winner, trials


def _with(title: str, params: EncoderParams, trial: dict[str, Any]) -> EncoderParams:
    """The settings of one trial."""
    values = {name: value for name, value in trial.items() if name != "weighted_f1"}
    try:
        return EncoderParams.model_validate({**params.model_dump(exclude={"search"}), **values})
    except ValueError as error:
        raise TrainingError(f"{title}: search: {values} cannot be trained with: {error}") from error


def _read(scratch: Path | None) -> list[dict[str, Any]]:
    if scratch is None or not (scratch / _FILE).exists():
        return []
    return list(json.loads((scratch / _FILE).read_text(encoding="utf-8")))


def _write(scratch: Path | None, trials: list[dict[str, Any]]) -> None:
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
        partial = scratch / f"{_FILE}.partial"
        partial.write_text(json.dumps(trials), encoding="utf-8")
        partial.replace(scratch / _FILE)
