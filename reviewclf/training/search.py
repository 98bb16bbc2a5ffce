"""Choosing hyper-parameters of an encoder by trials on validation rows (Optuna)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from reviewclf.errors import TrainingError
from reviewclf.training.encoder_params import EncoderParams
from reviewclf.training.rows import TrainingJob

logger = logging.getLogger(__name__)

T = TypeVar("T")


def search(
    title: str, params: EncoderParams, fine_tune: Callable[[str, EncoderParams, TrainingJob], T], job: TrainingJob
) -> tuple[EncoderParams, T, list[dict[str, Any]]]:
    """Fine-tune several times, as ``params.search`` says, and keep the best.

    Finished trials are kept in the job's scratch folder: a search that was killed goes on behind the last of them.

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
    storage = None if job.checkpoints is None else _storage(job.checkpoints / "search")
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True, direction="maximize")
    trained: dict[int, T] = {}

    def run(trial: Any, place: int) -> T:
        # The epochs of trials would mix with each other; those of the best are told at the end.
        scratch = None if job.checkpoints is None else job.checkpoints / f"trial-{place}"
        return fine_tune(title, _with(title, params, trial.params), replace(job, checkpoints=scratch, on_epoch=None))

    for number in range(len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])), params.search.trials):
        # A sampler for each trial: after a kill it asks what it would have asked.
        study.sampler = optuna.samplers.TPESampler(seed=job.seed + number)
        trial = study.ask(params.search.distributions())
        # A trial that is killed is asked for anew under another number, and goes on from its own checkpoints.
        trial.set_user_attr("place", number)
        tuned: Any = run(trial, number)
        score = max(entry.get("weighted_f1", 0.0) for entry in tuned.history)
        study.tell(trial, score)
        if study.best_trial.number == trial.number:
            trained = {trial.number: tuned}
        logger.info("%s: trial %d of %d: %s, %.4f", title, number + 1, params.search.trials, trial.params, score)
    best = study.best_trial
    winner = trained.get(best.number) or run(best, best.user_attrs["place"])  # the latter if it was trained before a kill
    trials = [{**trial.params, "weighted_f1": trial.value} for trial in study.trials if trial.value is not None]
    if job.checkpoints is not None:
        for scratch in (job.checkpoints / "search", *job.checkpoints.glob("trial-*")):
            shutil.rmtree(scratch, ignore_errors=True)
    return _with(title, params, best.params), winner, trials


def _storage(folder: Path) -> Any:
    """Where trials outlive the process."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / "trials.log")))


def _with(title: str, params: EncoderParams, values: dict[str, Any]) -> EncoderParams:
    """The settings of one trial."""
    try:
        return EncoderParams.model_validate({**params.model_dump(exclude={"search"}), **values})
    except ValueError as error:
        raise TrainingError(f"{title}: search: {values} cannot be trained with: {error}") from error
