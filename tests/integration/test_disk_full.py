"""A store whose disk is full: a clear error, nothing half-visible, and the night goes on once there is space again."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reviewclf.errors import StoreError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.journal import VoteJournal, journaled_votes
from reviewclf.settings import Settings, load_settings
from reviewclf.storage import Store
from tests.integration.test_stages import run_ingest, run_label

_STEP = 24 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "reviewclf-test", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: run as root, outside a container without CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


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
        for table, keys in store.snapshot().tables.items():
            assert sum(part.num_rows for part in store.iter_tables(keys)) > 0, table
        os.truncate(ballast, ballast.stat().st_size - _STEP)
    assert len(failures) >= 5
    assert all("No space left on device: free some space" in failure for failure in failures), failures
    assert versions == sorted(versions)
    assert store.snapshot() == Store(roomy.store_uri).snapshot()


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
    journal = VoteJournal(store)
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
