"""The platform, started once for all tests of this folder, and the undisturbed night that the others are held against."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reviewclf.settings import load_settings
from tests.conftest import FAULT_ROW
from tests.services import postgres_binaries, redis_server, weed
from tests.team.night import Fault, Night, as_pipeline, clear_mlflow, left_behind, run_night
from tests.team.platform import Platform, running

# The product waits two minutes before it gives a silent worker up. What happens then is the same after a quarter of a minute,
# and these tests kill many workers.
HEARTBEAT_TIMEOUT = 15
FASTER = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}


class Nights:
    """Nights on one platform, each with an empty store and an empty MLflow."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._numbers = count(1)
        self._inputs = _bring_in(platform)

    def run(self, name: str, **options: Any) -> tuple[Night, dict[str, Any]]:
        """One night and what it leaves behind; see :func:`run_night`."""
        name = f"{name}-{next(self._numbers)}"
        store = f"s3://reviews/{name}"
        self.platform.configure(REVIEWCLF_STORE=store, **self._inputs)
        try:
            night = run_night(self.platform, **options)
            return night, left_behind(self.platform, store, night)
        finally:  # a night that failed is no matter of the next one
            clear_mlflow(self.platform, name)


def _bring_in(platform: Platform) -> dict[str, str]:
    """Put the bundled sample into the bucket; the settings that name it there."""
    import boto3

    settings = load_settings(_env_file=None)
    found = {}
    with as_pipeline(platform):
        client = boto3.client("s3")
        for name in ("source", "gold", "votes", "synthetic", "synthetic_votes"):
            path = Path(getattr(settings, name))
            client.upload_file(str(path), "reviews", f"in/{path.name}")
            found[f"REVIEWCLF_{name.upper()}"] = f"s3://reviews/in/{path.name}"
    return found


class Undisturbed(NamedTuple):
    """A night without faults."""

    night: Night
    found: dict[str, Any]


@pytest.fixture(scope="package")
def nights() -> Iterator[Nights]:
    for needed in (postgres_binaries, redis_server, weed):
        needed()
    # Not below pytest's own folder, which other accounts cannot enter: PostgreSQL runs as one.
    folder = Path(tempfile.mkdtemp(prefix="reviewclf-team-"))
    folder.chmod(0o755)
    try:
        with running(folder / "platform", overrides=FASTER) as platform:
            yield Nights(platform)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def undisturbed(nights: Nights) -> Undisturbed:
    return Undisturbed(*nights.run("undisturbed"))


class FaultTable:
    """What the run of the tests ends with: a row for each fault that a night survived."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def note(self, fault: str, stage: str, outcome: str, seconds: float | None) -> None:
        """Add a row."""
        self._record(FAULT_ROW, [fault, stage, outcome, "" if seconds is None else f"{seconds:.0f}"])

    def note_all(self, faults: list[Fault]) -> None:
        """Add the rows of faults that a night survived."""
        names = {
            "worker": "worker killed (-9)",
            "scheduler": "scheduler killed (-9)",
            "postgres": "PostgreSQL away 30 s",
            "redis": "Redis away 30 s",
            "s3": "S3 server away 30 s",
            "mlflow": "MLflow away 30 s",
        }
        for fault in faults:
            self.note(names[fault.kind], f"{fault.task.partition('.')[2]} ({fault.point})", fault.outcome, fault.seconds)


@pytest.fixture
def table(record_property: Callable[[str, object], None]) -> FaultTable:
    return FaultTable(record_property)
