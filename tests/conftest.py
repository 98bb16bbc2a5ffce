"""Shared fixtures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
# Each of these starts Airflow, which by itself keeps two cores busy.
PLATFORMS = ("e2e", "team", "ui")
# Rows of a table travel as properties of the tests that note them, so that they arrive from whichever process ran those.
FAULT_ROW = "survived fault"

# Machines that run tests side by side make any function slow for a moment: time is measured in tests/benchmarks.
hypothesis.settings.register_profile("reviewclf", deadline=None)
hypothesis.settings.load_profile("reviewclf")


class ByPlatform(LoadScopeScheduling):
    """Where tests run side by side: one Airflow at a time, and beside it the rest, file by file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "platform" if file.split("/")[1] in PLATFORMS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByPlatform:
    """What deals the tests out, see ``make test``."""
    return ByPlatform(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real reviews beside the checkout; tests that need it are left out, with the reason, where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "reviews.csv").exists():
        pytest.skip("real reviews are not here: put reviews.csv, gold_reviews.csv and votes.csv into ../shared/data")
    return folder


@pytest.fixture(scope="session", autouse=True)
def surroundings() -> Iterator[None]:
    """No test downloads the encoders of the bundled candidates file, or writes to the MLflow of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(autouse=True)
def tracking_server_forgotten() -> Iterator[None]:
    """MLflow keeps the server it spoke to last, in the environment too: the next test would speak to it as well."""
    forget_tracking_server()  # that of the fixtures that tests share
    yield
    forget_tracking_server()


def forget_tracking_server() -> None:
    """Let the next :class:`Tracker` be the one that its settings say."""
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the faults that a team's platform has survived."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [row for report in reports for name, row in report.user_properties if name == FAULT_ROW]
    if not rows:
        return
    terminalreporter.section("faults survived")
    terminalreporter.line("A silent worker is given up after 15 s here; see infra/airflow.env for the product.")
    for row in [("fault", "stage", "outcome", "seconds to recover"), ("---", "---", "---", "---:"), *rows]:
        terminalreporter.line(f"| {' | '.join(row)} |")
