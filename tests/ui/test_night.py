"""A DAG run in Airflow's own pages: the note that sums it up, and the links of its tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import expect

from tests.ui.conftest import START_SECONDS, Platform, Visitor


@pytest.fixture(scope="module")
def run_id(platform: Platform) -> str:
    """A finished run of reviews_ingest, by the scheduler and a task process of its own."""
    platform.start("dag-processor")
    platform.start("scheduler")
    deadline = time.monotonic() + START_SECONDS
    while platform.api.dag("reviews_ingest") is None:
        assert time.monotonic() < deadline, platform.api.import_errors()
        time.sleep(0.5)
    platform.api.unpause("reviews_ingest")
    run_id = platform.api.trigger("reviews_ingest")
    while (state := platform.api.run("reviews_ingest", run_id)["state"]) not in ("success", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert state == "success"
    return run_id


def test_note_says_what_the_run_did(platform: Platform, run_id: str, visit: Callable[..., Visitor]) -> None:
    note = platform.api.run("reviews_ingest", run_id)["note"]
    assert note.startswith("- Rows: 620 rows in, 613 clean, 3 quarantined, 4 duplicates")
    page = visit().page
    page.goto(f"/dags/reviews_ingest/runs/{quote(run_id)}")
    expect(page.get_by_text("613 clean, 3 quarantined, 4 duplicates").first).to_be_visible()


def test_task_links_to_its_data_docs(run_id: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page = visitor.page
    page.goto(f"/dags/reviews_ingest/runs/{quote(run_id)}/tasks/validate_raw/details")
    page.get_by_role("link", name="Data docs").click()
    page.wait_for_url("**/reviewclf/docs/validations/raw/**")
    expect(page.get_by_text("Validations / raw /").first).to_be_visible()
    # Great Expectations' pages ask for scripts on the internet, and say so where there is none.
    visitor.complaints.clear()


def test_mlflow_answers_under_this_machine_s_own_names_only(platform: Platform) -> None:
    """A web page may let a name of its own point to this machine; MLflow's defaults take names like this one for an address."""
    address = f"{platform.mlflow}/api/2.0/mlflow/registered-models/get?name=review-classifier"
    port = platform.mlflow.rpartition(":")[2]
    told = {
        host: httpx.get(address, headers={"Host": f"{host}:{port}"}, trust_env=False).status_code
        for host in ("localhost", "127.0.0.1", "10.example.org", "192.168.example.org")
    }
    assert told == {"localhost": 200, "127.0.0.1": 200, "10.example.org": 403, "192.168.example.org": 403}
