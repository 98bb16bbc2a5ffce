"""Servers that do not answer: told from data and settings that are wrong, because only the former is worth another try."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from reviewclf.data.frames import read_frame
from reviewclf.data.sources import list_source, read_chunks
from reviewclf.errors import RegistryError, SourceUnavailableError, StoreError
from reviewclf.manifest import Manifest
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.model import log_model, register
from reviewclf.registry.tracking import Tracker
from reviewclf.settings import IngestSettings, Settings, load_settings
from reviewclf.stages import train as train_stages
from reviewclf.store import Store
from tests.integration.conftest import S3
from tests.services import free_port
from tests.small_models import save_small


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port where nobody listens, named as the S3 server."""
    import s3fs

    port = free_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield port
    s3fs.S3FileSystem.clear_instance_cache()


def test_store_whose_server_is_away_is_named(nobody: int) -> None:
    store = Store("s3://reviews/store")
    for attempt in (store.snapshot, lambda: store.put_bytes(b"x", ".bin"), lambda: store.manifest("clean", "abc")):
        with pytest.raises(StoreError, match="the server is away"):
            attempt()


def test_source_and_gold_whose_server_is_away_are_told_from_missing_ones(nobody: int) -> None:
    with pytest.raises(SourceUnavailableError, match=r"s3://reviews/in\.csv"):
        list_source("s3://reviews/in.csv", IngestSettings())
    with pytest.raises(SourceUnavailableError, match=r"s3://reviews/gold\.csv"):
        read_frame("s3://reviews/gold.csv", setting="REVIEWCLF_GOLD")


def test_database_that_cannot_be_connected_to_is_told_from_a_wrong_table(nobody: int) -> None:
    options = IngestSettings(table="reviews")
    (source,) = list_source(f"postgresql+psycopg2://me:secret@127.0.0.1:{nobody}/reviews", options)
    with pytest.raises(SourceUnavailableError, match="no connection") as raised:
        list(read_chunks(source, options))
    assert "secret" not in str(raised.value)


def test_missing_bucket_is_no_empty_store(s3: S3) -> None:
    with pytest.raises(StoreError, match="no-such-bucket"):
        Store("s3://no-such-bucket/store").snapshot()


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_run_is_not_taken_for_deleted_while_mlflow_is_away(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_run_id: str) -> None:
        raise MlflowException("503: try again")

    assert tracker.is_alive("0" * 32) is False
    monkeypatch.setattr(tracker.client, "get_run", refuse)
    with pytest.raises(RegistryError, match="503"):
        tracker.is_alive("0" * 32)


def test_twin_of_a_run_whose_answer_was_lost_is_deleted(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    create = tracker.client.create_run

    def create_twice(*arguments: Any, **options: Any) -> Any:
        create(*arguments, **options)
        return create(*arguments, **options)

    monkeypatch.setattr(tracker.client, "create_run", create_twice)
    parent = tracker.open_run("key", kind="retrain", name="retrain", description="")
    with tracker.candidate_run("key-1", parent=parent, candidate="logreg", name="logreg", description="") as run_id:
        pass
    assert sorted(run.info.run_id for run in tracker.find_runs({})) == sorted([parent, run_id])


def test_run_of_a_registered_version_outlives_a_store_that_forgot_it(tracker: Tracker, tmp_path: Path) -> None:
    """A new store, or one from an older back-up, trains the champion's candidate anew under the same key."""
    parent = tracker.open_run("key", kind="retrain", name="retrain", description="")
    arguments = {"parent": parent, "candidate": "logreg", "name": "logreg", "description": ""}
    save_small(tmp_path / "classifier")
    with tracker.candidate_run("key-1", **arguments) as first:
        uri = log_model(tracker, first, tmp_path / "classifier", packages=["skops"], example="платье", metadata={})
    with tracker.candidate_run("key-1", **arguments) as second:
        uri = log_model(tracker, second, tmp_path / "classifier", packages=["skops"], example="платье", metadata={})
    assert not tracker.is_alive(first), "nothing was made of it"
    version = register(tracker, run_id=second, model_uri=uri, tags={}, description="")
    with tracker.candidate_run("key-1", **arguments) as third:
        pass
    assert tracker.is_alive(second)
    assert tracker.is_alive(third)
    assert tracker.client.get_model_version(REGISTERED_MODEL, version).run_id == second


@pytest.fixture
def labelled(tmp_path: Path, labelled_sample: str) -> Settings:
    shutil.copytree(labelled_sample, tmp_path / "home" / "store")
    return load_settings(_env_file=None, home=tmp_path / "home")


def test_retrain_run_left_half_told_is_told_to_the_end(labelled: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_environment", kill)
        with pytest.raises(KilledError):
            train_stages.build_dataset(labelled)
    dataset: Manifest = train_stages.build_dataset(labelled)
    tracker = Tracker(labelled.tracking_uri)
    (run,) = tracker.find_runs({"reviewclf.kind": "retrain"})
    assert run.info.status == "FINISHED"
    assert tracker.read_json(run.info.run_id, "environment.json")["packages"]
    assert tracker.read_json(run.info.run_id, "dataset/card.json")["digest"] == dataset.digest
