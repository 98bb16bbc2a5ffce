"""A store whose disk is full: a clear error, nothing half-visible, and the night goes on once there is space again."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reviewclf.data.gold import load_gold
from reviewclf.errors import RegistryError, StoreError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.asking import journaled_votes, vote_journal
from reviewclf.manifest import Manifest
from reviewclf.promotion.history import History
from reviewclf.registry.model import aliases, versions
from reviewclf.registry.tracking import KIND_TAG, Tracker
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import ingest as ingest_stages
from reviewclf.stages import monitor as monitor_stages
from reviewclf.stages import score as score_stages
from reviewclf.stages import synthesize as synthesize_stages
from reviewclf.stages import train as train_stages
from reviewclf.stages.evaluate import score_champion
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy
from tests.conftest import forget_tracking_server
from tests.integration.test_scoring import assert_each_once
from tests.integration.test_stages import run_ingest, run_label
from tests.simulated_nights import ROOT
from tests.stores import before_each_write, held

SAMPLE = ROOT / "reviewclf" / "sample"
_STEP = 24 * 1024
_FREE_SPACE = "free some space"


class Disk:
    """A small file system, and a file that takes the space on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def leave(self, space: int) -> None:
        """Fill it until so many bytes are left."""
        self.clear()
        stats = os.statvfs(self.folder)
        self._ballast.write_bytes(b"\0" * (stats.f_bavail * stats.f_frsize - space))

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "reviewclf-test", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: run as root, outside a container without CAP_SYS_ADMIN")
    try:
        yield folder
    finally:
        # MLflow keeps its database open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """One with room for a store and for MLflow."""
    with mounted(tmp_path / "disk", "16m") as folder:
        yield Disk(folder)


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Every write that would make a file longer fails, as on a disk without space or beyond a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def night(settings: Settings) -> None:
    run_ingest(settings)
    run_label(settings)


def failure_of(settings: Settings) -> str | None:
    try:
        night(settings)
    except StoreError as error:
        return str(error)
    return None


def half_written(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.name.startswith(".new-")]


def test_night_goes_on_wherever_the_space_ended(small_disk: Path, tmp_path: Path) -> None:
    roomy = load_settings(_env_file=None, home=tmp_path / "roomy")
    night(roomy)
    tight = load_settings(_env_file=None, home=tmp_path / "tight", store=str(small_disk / "store"))
    store = Store(tight.store_uri)
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(b"\0" * (free - 2 * _STEP))
    failures, versions = [], [0]
    while (failure := failure_of(tight)) is not None:
        failures.append(failure)
        assert half_written(small_disk) == []
        versions.append(store.snapshot().version)
        # Every object that a snapshot names is whole.
        for table in (snapshot := store.snapshot()).tables:
            assert sum(part.num_rows for part in store.iter_tables(snapshot.keys(table))) > 0, table
        os.truncate(ballast, ballast.stat().st_size - _STEP)
    assert len(failures) >= 5
    assert [failure for failure in failures if "free some space" not in failure] == []
    assert versions == sorted(versions)
    assert held(store.uri) == held(roomy.store_uri)


def test_write_beyond_a_limit_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with files_no_longer_than(100), pytest.raises(StoreError, match="free some space"):
        store.put_bytes(os.urandom(4096), ".bin")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    with files_no_longer_than(100):
        assert store.read_bytes(store.put_bytes(b"short", ".txt")) == b"short"


def test_vote_that_did_not_fit_is_told_and_those_before_it_are_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    votes = [Vote(text_hash=f"{number:032x}", annotator="a@1", prompt="p@1", draw=0, label="одежда") for number in range(20)]
    journal = vote_journal(store)
    kept = 0

    def keep_all() -> None:
        nonlocal kept
        for vote in votes:
            journal.add(vote)
            kept += 1

    with files_no_longer_than(1000), pytest.raises(StoreError, match="free some space"):
        keep_all()
    assert 0 < kept < len(votes)
    assert sorted(vote.text_hash for vote in journaled_votes(store).values()) == [vote.text_hash for vote in votes[:kept]]


# -- the retrain and scoring -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which part of the sample is labelled, with one thin class."""
    home = tmp_path_factory.mktemp("labelled")
    reviews = pd.read_csv(SAMPLE / "reviews.csv", on_bad_lines="skip")
    reviews[: len(reviews) // 2].to_csv(home / "reviews.csv", index=False)
    pd.read_csv(SAMPLE / "gold.csv")[:150].to_csv(home / "gold.csv", index=False)
    settings = settings_of(home)
    run_ingest(settings)
    run_label(settings)
    return home


def settings_of(data: Path, **overrides: Any) -> Settings:
    return load_settings(
        _env_file=None,
        **{
            "home": data,
            "dataset": {"label_errors": "off"},
            "source": str(data / "reviews.csv"),
            "gold": str(data / "gold.csv"),
            "synthetic": str(SAMPLE / "synthetic.csv"),
            "synthetic_votes": str(SAMPLE / "synthetic_votes.csv"),
            "candidates": ROOT / "tests" / "candidates-quick.yaml",
            "augmentation": {"amounts": [0.25], "folds": 2},
            "scoring": {"shard_rows": 250},
            **overrides,
        },
    )


@pytest.fixture(scope="module")
def undisturbed(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home after a retrain that had all the space it wanted."""
    home = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(labelled / "store", home / "store")
    settings = settings_of(labelled, home=home)
    assert retrain(settings).details["promoted"] is True
    return settings


def train(settings: Settings) -> tuple[Manifest, list[Manifest]]:
    forget_tracking_server()
    planned = synthesize_stages.plan_synthesis(settings)
    categories = synthesize_stages.thin_classes(planned)
    assert categories
    synthesized = [synthesize_stages.synthesize(settings, planned, category) for category in categories]
    dataset = train_stages.build_dataset(settings, synthesized)
    return dataset, [train_stages.train(settings, dataset, name) for name in train_stages.candidate_names(settings)]


def retrain(settings: Settings) -> Manifest:
    evaluated = train_stages.evaluate(settings, *train(settings))
    return train_stages.promote(settings, train_stages.gate(settings, evaluated), who="night")


@contextmanager
def filled_before_write(disk: Disk, number: int) -> Iterator[None]:
    """The store's disk has no byte left when the write after so many others begins."""
    with before_each_write(lambda written: disk.leave(0) if written == number else None):
        try:
            yield
        finally:
            disk.clear()


def failure(work: Callable[[], object]) -> str | None:
    """What went wrong for want of space; anything else that goes wrong fails the test."""
    try:
        work()
    except (StoreError, RegistryError) as error:
        said = str(error)
    else:
        return None
    assert _FREE_SPACE in said
    return said


def assert_nothing_half_visible(settings: Settings) -> None:
    store = Store(settings.store_uri)
    assert half_written(Path(settings.store_uri)) == []
    for table in (snapshot := store.snapshot()).tables:
        assert sum(part.num_rows for part in store.iter_tables(snapshot.keys(table))) > 0, table
    stages = sorted({path.parent.name for path in Path(settings.store_uri).glob("stages/*/*.json")})
    for stage in stages:
        for _, manifest in store.manifests(stage):
            for keys in manifest.outputs.values():
                for key in [keys] if isinstance(keys, str) else keys:
                    if key.startswith("objects/"):
                        store.read_bytes(key)


def promotions(settings: Settings) -> tuple[list[Any], dict[str, str], list[tuple[Any, ...]]]:
    """Events, aliases and versions in the registry, without what differs from night to night."""
    tracker = tracker_of(settings)
    happened = History(tracker, Store(settings.store_uri)).events()
    events = [(event.action, event.version, event.from_version, event.dataset) for event in happened]
    known = [
        (version.version, version.tags["reviewclf.gate"], version.tags["reviewclf.dataset"]) for version in versions(tracker)
    ]
    return events, aliases(tracker), known


def runs(settings: Settings) -> list[tuple[str, str]]:
    """Kind and status of the runs of a retrain that somebody sees."""
    seen = [(run.data.tags[KIND_TAG], run.info.status) for run in tracker_of(settings).find_runs({})]
    return sorted(run for run in seen if run[0] in ("candidate", "retrain"))


def tracker_of(settings: Settings) -> Tracker:
    forget_tracking_server()
    return Tracker(settings.tracking_uri)


def datasets(settings: Settings) -> list[str]:
    return [manifest.digest for _, manifest in Store(settings.store_uri).manifests("dataset")]


def test_retrain_goes_on_whichever_write_found_no_space(
    disk: Disk, labelled: Path, undisturbed: Settings, tmp_path: Path
) -> None:
    shutil.copytree(labelled / "store", disk.folder / "store")
    tight = settings_of(labelled, home=tmp_path / "tight", store=str(disk.folder / "store"))
    failures: list[str] = []
    while True:
        with filled_before_write(disk, 1 if failures else 0):
            said = failure(lambda: retrain(tight))
        if said is None:
            break
        failures.append(said)
        assert_nothing_half_visible(tight)
        events, named, _ = promotions(tight)
        assert bool(events) == ("champion" in named)
    # Once the champion has moved, the gate is asked anew before the move is recorded as done: that write fails twice.
    assert len(failures) - 1 == len(set(failures)) >= 14
    for stage in ("plan_synthesis", "synthesize", "dataset", "train", "score", "evaluate", "gate"):
        assert any(f"{tight.store_uri}/stages/{stage}/" in said for said in failures), stage
    assert any("/snapshots/" in said for said in failures)
    assert held(tight.store_uri) == held(undisturbed.store_uri)
    assert datasets(tight) == datasets(undisturbed)
    assert promotions(tight) == promotions(undisturbed)
    assert runs(tight) == runs(undisturbed)


def test_scoring_goes_on_whichever_write_found_no_space(disk: Disk, undisturbed: Settings, tmp_path: Path) -> None:
    forget_tracking_server()
    shutil.copytree(undisturbed.store_uri, disk.folder / "before")
    roomy = undisturbed.model_copy(update={"store": str(tmp_path / "roomy")})
    shutil.copytree(disk.folder / "before", roomy.store_uri)
    score(roomy, {})
    tight = undisturbed.model_copy(update={"store": str(disk.folder / "store")})
    failures: list[str] = []
    while True:
        shutil.copytree(disk.folder / "before", tight.store_uri)
        finished: dict[str, Any] = {}
        with filled_before_write(disk, len(failures)):
            said = failure(lambda: score(tight, finished))  # noqa: B023
        if said is None:
            break
        failures.append(said)
        assert_nothing_half_visible(tight)
        snapshot = Store(tight.store_uri).snapshot()
        assert bool(snapshot.keys("predictions")) == any(key.startswith("predictions:") for key in snapshot.applied)
        score(tight, finished)
        assert_each_once(tight)
        assert_same_answers(tight, roomy)
        shutil.rmtree(tight.store_uri)
    assert len(failures) >= 14
    for stage in ("select_unscored", "score", "publish_predictions", "monitor"):
        assert any(f"{tight.store_uri}/stages/{stage}/" in said for said in failures), stage
    assert sum("/snapshots/" in said for said in failures) == 2


def score(settings: Settings, finished: dict[str, Any]) -> None:
    """A scoring; as in Airflow, a stage that has finished is not repeated and its answer is kept."""

    def once(name: str, stage: Callable[[], Any]) -> Any:
        if name not in finished:
            finished[name] = stage()
        return finished[name]

    selected = once("select", lambda: score_stages.select(settings))
    scored = [
        once(f"score {shard['shard']}", lambda shard=shard: score_stages.score(settings, selected, shard))
        for shard in selected.details["shards"]
    ]
    published = once("publish", lambda: score_stages.publish(settings, selected, scored))
    once("monitor", lambda: monitor_stages.monitor(settings, published))


def assert_same_answers(tight: Settings, undisturbed: Settings) -> None:
    kept = []
    for settings in (tight, undisturbed):
        store = Store(settings.store_uri)
        snapshot = store.snapshot()
        assert len(snapshot.keys("health")) == 1
        answers = store.read_table(snapshot.keys("predictions")).to_pandas().drop(columns="scored_at")
        kept.append(answers.sort_values(["review_id", "role"], ignore_index=True))
    pd.testing.assert_frame_equal(*kept)


def test_retrain_goes_on_wherever_mlflow_found_no_space(disk: Disk, labelled: Path, undisturbed: Settings) -> None:
    tight = settings_of(labelled, home=disk.folder / "home")
    shutil.copytree(labelled / "store", tight.store_uri)
    database = disk.folder / "home" / "mlflow" / "mlflow.db"
    models = disk.folder / "home" / "mlflow" / "artifacts" / "models"
    failures: list[str] = []
    space, trained = 0, False
    while True:
        # A model needs much space, what comes after it little.
        space += _STEP if trained else 25 * _STEP
        disk.leave(space)
        said = failure(functools.partial(retrain if trained else train, tight))
        disk.clear()
        if said is None and trained:
            break
        failures += [said] if said else []
        assert_nothing_half_visible(tight)
        # Attempts do not fill the disk one after another: the files of a model that was not finished are gone.
        done = bool(Store(tight.store_uri).manifests("train"))
        assert sum(path.is_file() for path in models.rglob("MLmodel")) == int(done)
        if done and not trained:
            space, trained = 0, True
        if database.exists():
            _, named, known = promotions(tight)
            assert len(known) <= 1
            assert "champion" not in named or known[0][1] == "passed"
    for doing in ("create its database", "store the model"):
        assert any(f"{tight.tracking_uri} did not {doing}" in said for said in failures), doing
    assert sum("MLflow at" in said for said in failures) >= 6
    assert datasets(tight) == datasets(undisturbed)
    assert promotions(tight) == promotions(undisturbed)
    assert runs(tight) == runs(undisturbed)


def test_checks_go_on_once_there_is_space_for_their_data_docs(disk: Disk, labelled: Path, tmp_path: Path) -> None:
    forget_tracking_server()
    tight = settings_of(labelled, home=disk.folder / "home", store=str(tmp_path / "store"))
    docs = tight.home / "data_docs"

    def goes_on(check: Callable[[], Manifest]) -> Manifest:
        for space in (0, 4096, 65_536):
            disk.leave(space)
            said = failure(check)
            assert said is not None
            assert said.startswith(f"{docs}: the data docs cannot be written")
        disk.clear()
        return check()

    ingested = ingest_stages.ingest(tight)
    validated = goes_on(lambda: ingest_stages.validate_raw(tight, ingested))
    cleaned = ingest_stages.clean(tight, ingested, validated)
    report = goes_on(lambda: ingest_stages.validate_clean(tight, cleaned))
    ingest_stages.publish(tight, ingested, validated, cleaned, report)
    run_label(tight)
    assert held(tight.store_uri) == held(str(labelled / "store"))


def test_full_folder_of_temporary_files_is_named_and_the_retrain_goes_on(
    disk: Disk, labelled: Path, undisturbed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    shutil.copytree(labelled / "store", tmp_path / "tight" / "store")
    tight = settings_of(labelled, home=tmp_path / "tight")
    failures: list[str] = []
    # Figures and reports need little, a model much.
    for space in (0, 16_384, 65_536, 800_000):
        disk.leave(space)
        said = failure(lambda: retrain(tight))
        disk.clear()
        assert said is not None
        assert f"in {disk.folder}, where files are made first" in said
        # MLflow says of it that the code cannot be copied.
        assert "code path" not in said
        assert list(disk.folder.iterdir()) == []
        assert promotions(tight) == ([], {}, [])
        failures.append(said)
    for doing in ("store dataset/card.json", "store validation/reliability.png", "store the model"):
        assert any(f"did not {doing}: " in said for said in failures), doing
    assert failure(lambda: retrain(tight)) is None
    assert promotions(tight) == promotions(undisturbed)
    assert runs(tight) == runs(undisturbed)


def test_full_disk_is_no_reason_to_roll_the_champion_back(
    disk: Disk, undisturbed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_tracking_server()
    tracker, taxonomy = Tracker(undisturbed.tracking_uri), Taxonomy.load(undisturbed.taxonomy)
    pd.read_csv(undisturbed.gold)[:100].to_csv(tmp_path / "gold.csv", index=False)
    other = load_gold(undisturbed.model_copy(update={"gold": str(tmp_path / "gold.csv")}), taxonomy)
    assert other is not None
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    disk.leave(0)
    said = failure(lambda: score_champion(Store(undisturbed.store_uri), taxonomy, tracker, other))
    assert said is not None
    assert "rollback" not in said


def test_no_folder_for_temporary_files_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_tracking_server()
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = tracker.open_run("key", kind="retrain", name="retrain", description="")
    monkeypatch.setattr(tempfile, "tempdir", None)
    with files_no_longer_than(0):
        said = failure(lambda: tracker.log_text(run_id, "text", "a.txt"))
    assert said is not None
    assert "did not store a.txt: " in said
    tracker.log_text(run_id, "text", "a.txt")
    assert tracker.read_text(run_id, "a.txt") == "text"
