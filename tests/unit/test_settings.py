"""Settings: one object, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from reviewclf.errors import SettingsError
from reviewclf.settings import load_settings


def test_defaults_point_to_the_bundled_sample() -> None:
    settings = load_settings(_env_file=None)
    assert Path(settings.source).name == "reviews.csv"
    assert (settings.gate.min_weighted_f1, settings.gate.max_seconds_per_example) == (0.74, 5.0)


def test_nested_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_GATE__MIN_WEIGHTED_F1", "0.8")
    monkeypatch.setenv("REVIEWCLF_STORE", "s3://bucket/prefix")
    settings = load_settings(_env_file=None)
    assert settings.gate.min_weighted_f1 == 0.8
    assert settings.store_uri == "s3://bucket/prefix"


def test_dotenv_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("REVIEWCLF_SEED=7\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().seed == 7


def test_empty_gold_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_GOLD", "")
    assert load_settings(_env_file=None).gold is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REVIEWCLF_GATE__MIN_WEIGHTED_F1", "74"), ("REVIEWCLF_SEED", "many"), ("REVIEWCLF_LLM__BACKEND", "oracle")],
)
def test_wrong_value_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable}.*{value}"):
        load_settings(_env_file=None)


def test_tracking_uri_is_mlflows_own_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert load_settings(_env_file=None, home=tmp_path).tracking_uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert load_settings(_env_file=None).tracking_uri == "http://127.0.0.1:5000"


def test_misspelt_variable_is_pointed_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("REVIEWCLF_SUORCE", "reviews.csv")
    load_settings(_env_file=None)
    assert "REVIEWCLF_SUORCE is no setting and changes nothing; did you mean REVIEWCLF_SOURCE?" in caplog.text


def test_boost_of_an_unknown_category_names_the_setting() -> None:
    import pandas as pd

    from reviewclf.errors import LabelingError
    from reviewclf.labeling.labels import decide_labels
    from reviewclf.taxonomy import Taxonomy

    settings = load_settings(_env_file=None, aggregation={"method": "mean_confidence", "rare_class_boost": {"еда": 2.0}})
    votes = pd.DataFrame([{"text_hash": "a", "annotator": "x", "prompt": "p", "draw": 0, "label": "обувь", "confidence": 0.4}])
    taxonomy = Taxonomy.load(settings.taxonomy)
    with pytest.raises(LabelingError, match="REVIEWCLF_AGGREGATION__RARE_CLASS_BOOST: not in the taxonomy: еда"):
        decide_labels(votes, settings, taxonomy)
    boosted = load_settings(_env_file=None, aggregation={"method": "mean_confidence", "rare_class_boost": {"обувь": 2.0}})
    assert decide_labels(votes, boosted, taxonomy)["confidence"].tolist() == [0.8]


def test_earlier_names_of_serving_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVIEWCLF_SERVING__THREADS", "3")
    monkeypatch.setenv("REVIEWCLF_SERVING__MAX_WAIT_MS", "2")
    assert load_settings(_env_file=None).serving.workers == 3
    monkeypatch.setenv("REVIEWCLF_SERVING__WORKERS", "2")
    assert load_settings(_env_file=None).serving.workers == 2
