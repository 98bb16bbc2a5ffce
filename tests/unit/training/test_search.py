"""Trials of encoders: the best wins, equal seeds ask the same, a killed search goes on behind its last trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from pydantic import ValidationError

from reviewclf.training.encoder_params import EncoderParams
from reviewclf.training.rows import TrainingJob
from reviewclf.training.search import search


def _params(trials: int = 6, **space: Any) -> EncoderParams:
    space = space or {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "layer_decay": [0.8, 0.9, 1.0]}
    return EncoderParams.model_validate({"checkpoint": "tiny", "epochs": 3, "search": {"trials": trials, "space": space}})


def _job(seed: int = 0, checkpoints: Path | None = None) -> TrainingJob:
    return TrainingJob(pd.DataFrame(), pd.DataFrame(), classes=[], seed=seed, checkpoints=checkpoints)


class Tuned(NamedTuple):
    history: list[dict[str, float]]
    network: str


class Killed(BaseException):
    pass


class Trainer:
    """Scores a learning rate by how near it is to 1e-4."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.tried: list[dict[str, float]] = []
        self._dies_after = dies_after

    def __call__(self, title: str, params: EncoderParams, job: TrainingJob) -> Tuned:
        if self._dies_after is not None and len(self.tried) == self._dies_after:
            raise Killed
        assert params.search is None
        self.tried.append({"learning_rate": params.learning_rate, "layer_decay": params.layer_decay})
        score = 1 - abs(params.learning_rate - 1e-4)
        return Tuned([{"epoch": 1.0, "weighted_f1": score}], f"{params.learning_rate}")


def test_the_best_trial_wins() -> None:
    train = Trainer()
    chosen, trained, trials = search("x", _params(), train, _job(seed=0, checkpoints=None))
    best = min(train.tried, key=lambda tried: abs(tried["learning_rate"] - 1e-4))
    assert chosen.learning_rate == best["learning_rate"]
    assert trained.network == str(best["learning_rate"])
    assert [trial["learning_rate"] for trial in trials] == [tried["learning_rate"] for tried in train.tried]
    assert len({tried["learning_rate"] for tried in train.tried}) == 6
    assert all(1e-5 <= tried["learning_rate"] <= 1e-3 for tried in train.tried)
    assert (chosen.epochs, chosen.search) == (3, None)


def test_equal_seeds_ask_the_same_and_others_do_not() -> None:
    tried = []
    for seed in (0, 0, 1):
        train = Trainer()
        search("x", _params(), train, _job(seed=seed, checkpoints=None))
        tried.append(train.tried)
    assert tried[0] == tried[1] != tried[2]


@pytest.mark.parametrize("done", [0, 2, 5])
def test_killed_search_goes_on_behind_its_last_trial(tmp_path: Path, done: int) -> None:
    whole = Trainer()
    undisturbed = search("x", _params(), whole, _job(seed=0, checkpoints=None))
    first, second = Trainer(dies_after=done), Trainer()
    with pytest.raises(Killed):
        search("x", _params(), first, _job(seed=0, checkpoints=tmp_path))
    assert search("x", _params(), second, _job(seed=0, checkpoints=tmp_path)) == undisturbed
    assert [*first.tried, *second.tried][:6] == whole.tried
    assert len(second.tried) <= 6 - done + 1  # the best is trained once more if it is no longer at hand
    assert not list(tmp_path.iterdir())


def test_trial_that_was_killed_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    folders: list[Path | None] = []

    class Noting(Trainer):
        def __call__(self, title: str, params: EncoderParams, job: TrainingJob) -> Tuned:
            folders.append(job.checkpoints)
            return super().__call__(title, params, job)

    # Killed twice in the second trial, and once in the third.
    for dies_after in (1, 0, 1):
        with pytest.raises(Killed):
            search("x", _params(), Noting(dies_after), _job(checkpoints=tmp_path))
    search("x", _params(trials=3), Noting(), _job(checkpoints=tmp_path))
    names = [folder and folder.name for folder in folders]
    assert names[:6] == ["trial-0", "trial-1", "trial-1", "trial-1", "trial-2", "trial-2"]
    assert len(names) <= 7, "the best may be trained once more"
    assert set(names[6:]) < {"trial-0", "trial-1"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"checkpoint": ["a", "b"]}, "no setting checkpoint to vary"),
        ({"speed": [1]}, "no setting speed to vary"),
        ({"learning_rate": {"low": 1e-3, "high": 1e-5}}, "has to be below high"),
        ({"learning_rate": {"low": 0, "high": 1e-5, "log": True}}, "above 0 with log"),
        ({"learning_rate": []}, "learning_rate"),
    ],
)
def test_space_that_makes_no_sense_is_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _params(**space)
