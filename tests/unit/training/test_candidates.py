"""The candidates file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reviewclf.errors import TrainingError
from reviewclf.manifest import digest_of
from reviewclf.settings import load_settings
from reviewclf.training.candidates import load_candidates
from reviewclf.training.linear import LinearParams

WORDS = {"ngram_range": [1, 2], "min_df": 2, "max_features": 30_000}
PARAMS = {"estimator": "logistic_regression", "word": WORDS}
ENTRY = {"name": "logreg", "kind": "linear", "params": PARAMS}


def _file(folder: Path, *entries: object) -> Path:
    path = folder / "candidates.yaml"
    path.write_text(yaml.safe_dump({"candidates": list(entries)}, allow_unicode=True), encoding="utf-8")
    return path


def test_bundled_file_holds_the_baselines_and_the_encoders() -> None:
    candidates = load_candidates(load_settings(_env_file=None).candidates)
    linear = {candidate.name: candidate.params.estimator for candidate in candidates if candidate.kind == "linear"}
    assert linear == {"logreg": "logistic_regression", "linear-svc": "linear_svc"}
    tuned = {candidate.name: candidate.params for candidate in candidates if candidate.kind == "encoder"}
    assert {name: (params.checkpoint, params.loss) for name, params in tuned.items()} == {
        "e5-small": ("intfloat/multilingual-e5-small", "weighted_ce"),
        "rubert-tiny2": ("cointegrated/rubert-tiny2", "weighted_ce"),
        "rubert-base": ("DeepPavlov/rubert-base-cased", "weighted_ce"),
        "rubert-base-focal": ("DeepPavlov/rubert-base-cased", "focal"),
    }
    # Those of the notebook.
    params = tuned["rubert-base"]
    found = (params.learning_rate, params.batch_size, params.gradient_accumulation, params.epochs, params.weight_decay)
    assert found == (2e-5, 8, 2, 7, 0.01)


def test_settings_of_the_notebook_can_be_written_down(tmp_path: Path) -> None:
    entry = {**ENTRY, "params": {**PARAMS, "C": 1, "class_weight_power": 1, "calibration": "none"}}
    (candidate,) = load_candidates(_file(tmp_path, entry))
    assert candidate.params.word is not None
    assert (candidate.params.word.ngram_range, candidate.params.word.min_df) == ((1, 2), 2)
    assert candidate.params.word.max_features == 30_000
    assert candidate.params.char is None
    assert candidate.params.stem_weight == 0


def test_digest_follows_the_parameters_and_not_the_order_of_keys(tmp_path: Path) -> None:
    (first,) = load_candidates(_file(tmp_path, ENTRY))
    (same,) = load_candidates(_file(tmp_path, dict(reversed(list(ENTRY.items())))))
    (other,) = load_candidates(_file(tmp_path, {**ENTRY, "params": {**PARAMS, "C": 2}}))
    assert digest_of(first) == digest_of(same) != digest_of(other)


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"candidates\.yaml: candidate 2 \(logreg\): name: another candidate"):
        load_candidates(_file(tmp_path, ENTRY, ENTRY))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "forest"}, r"candidate 1 \(logreg\): kind: expected one of linear, encoder, frozen-encoder, found 'forest'"),
        ({"kind": ["linear"]}, r"kind: expected one of linear, encoder, frozen-encoder, found \['linear'\]"),
        ({"name": "Log reg"}, r"candidate 1 \(Log reg\): name: "),
        ({"colour": "red"}, r"colour: Extra inputs"),
        ({"params": {**PARAMS, "C": -1}}, r"params\.C: .*found -1"),
        ({"params": {**PARAMS, "min_df": 3}}, r"params\.min_df: Extra inputs"),
        ({"params": {**PARAMS, "word": {"ngram_range": [3, 1]}}}, r"params\.word: .*short to long"),
        ({"params": {"estimator": "linear_svc"}}, r"no features"),
        ({"params": {**PARAMS, "estimator": "linear_svc", "calibration": "none"}}, r"no probabilities of its own"),
        ({"params": {**PARAMS, "search": {"D": [1]}}}, r"search: no setting D"),
        ({"params": {**PARAMS, "search": {"C": []}}}, r"params\.search\.C"),
        ({"params": {**PARAMS, "search": {"C": [1, 0]}}}, r"greater than 0"),
        ({"params": {**PARAMS, "search": {"C": list(range(1, 10)), "max_iter": list(range(1, 10))}}}, r"81 combinations"),
    ],
)
def test_entry_that_breaks_the_contract_is_refused_with_its_field(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said) as caught:
        load_candidates(_file(tmp_path, {**ENTRY, **change}))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "file: Input should be a valid dictionary"),
        ("candidates: []", "candidates: List should have at least 1 item"),
        ("candidates: {a: 1}", "candidates: Input should be a valid list"),
        ("candidates: [логит]", "candidate 1: expected a mapping"),
        ("candidates: [{name: a, kind: linear}]", "params: Field required"),
        ("candidate: []\ncandidates: [{name: a}]", "candidate: Extra inputs are not permitted"),
        ("candidates: [", "no UTF-8 YAML"),
    ],
)
def test_file_that_is_no_list_of_candidates_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "candidates.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TrainingError, match=said):
        load_candidates(path)


def test_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="REVIEWCLF_CANDIDATES"):
        load_candidates(tmp_path / "none.yaml")


def test_search_tries_all_combinations_in_the_order_written() -> None:
    params = LinearParams.model_validate({**PARAMS, "search": {"C": [3, 1], "char": [None, {"ngram_range": [2, 3]}]}})
    tried = [(settings.C, settings.char is not None) for settings in params.settings()]
    assert tried == [(3, False), (3, True), (1, False), (1, True)]


def test_without_search_there_is_one_setting() -> None:
    (settings,) = LinearParams.model_validate({**PARAMS, "C": 5}).settings()
    assert settings.C == 5
