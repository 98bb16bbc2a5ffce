"""Faults in the middle of a night: it ends as an undisturbed one does. Nothing lost, nothing doubled, one promotion."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from reviewclf.settings import load_settings
from reviewclf.stages import ingest as stages
from tests.team.conftest import FaultTable, Nights, Undisturbed
from tests.team.night import Fault, as_pipeline

INGEST, LABEL, RETRAIN = "reviews_ingest", "reviews_label", "reviews_retrain"

# Where a kill hurts most: the stage's work is done and written, and its manifest, or the snapshot, is not.
KILLS = [
    Fault("stage-ingest", f"{INGEST}.ingest"),
    Fault("stage-validate_raw", f"{INGEST}.validate_raw"),
    Fault("stage-clean", f"{INGEST}.clean"),
    Fault("stage-validate_clean", f"{INGEST}.validate_clean"),
    Fault("commit-reviews", f"{INGEST}.publish"),
    Fault("stage-select", f"{LABEL}.select"),
    Fault("stage-annotate", f"{LABEL}.annotate"),
    Fault("commit-votes", f"{LABEL}.collect"),
    Fault("commit-labels", f"{LABEL}.aggregate"),
    Fault("stage-plan_synthesis", f"{RETRAIN}.plan_synthesis"),
    Fault("stage-synthesize", f"{RETRAIN}.synthesize"),
    Fault("stage-dataset", f"{RETRAIN}.build_dataset"),
    Fault("stage-train", f"{RETRAIN}.train"),
    Fault("stage-evaluate", f"{RETRAIN}.evaluate"),
    Fault("stage-judge", f"{RETRAIN}.gate"),
    Fault("before-champion", f"{RETRAIN}.promote"),
    Fault("after-champion", f"{RETRAIN}.promote"),
]

# The task goes on into the outage: in the middle of its work, with requests open and more to come.
OUTAGES = [
    Fault("begin-validate_raw", f"{INGEST}.validate_raw", "scheduler"),
    Fault("begin-clean", f"{INGEST}.clean", "s3"),
    Fault("begin-select", f"{LABEL}.select", "redis"),
    Fault("begin-annotate", f"{LABEL}.annotate", "postgres"),
    Fault("commit-labels", f"{LABEL}.aggregate", "s3"),
    Fault("stage-dataset", f"{RETRAIN}.build_dataset", "redis"),
    Fault("begin-train", f"{RETRAIN}.train", "mlflow"),
    Fault("begin-evaluate", f"{RETRAIN}.evaluate", "postgres"),
    Fault("begin-judge", f"{RETRAIN}.gate", "scheduler"),
    Fault("before-champion", f"{RETRAIN}.promote", "mlflow"),
]


def survive(nights: Nights, undisturbed: Undisturbed, table: FaultTable, name: str, faults: list[Fault]) -> None:
    _, found = nights.run(name, faults=faults)
    assert found == undisturbed.found
    table.note_all(faults)


# The quick half, in one night.
SOME = [
    Fault("begin-annotate", f"{LABEL}.annotate", "postgres"),
    Fault("stage-train", f"{RETRAIN}.train"),
    Fault("begin-evaluate", f"{RETRAIN}.evaluate", "s3"),
    Fault("before-champion", f"{RETRAIN}.promote"),
]


def test_second_trigger_rival_kills_and_outages_change_nothing(
    nights: Nights, undisturbed: Undisturbed, table: FaultTable
) -> None:
    """The same run is triggered twice at once; while it is about to publish, another process goes through the same night."""
    platform = nights.platform
    rival: list[dict[str, int]] = []

    def trigger_twice() -> str:
        with ThreadPoolExecutor(2) as both:
            answers = list(both.map(lambda _: _trigger(nights, "the-same"), range(2)))
        assert sorted(answers) == [200, 409]
        return "the-same"

    def overtake() -> None:
        if not rival and platform.held("commit-reviews") is not None:
            rival.append(_ingest_here(nights))
            platform.release("commit-reviews")

    platform.arm("commit-reviews")
    night, found = nights.run("some", faults=SOME, start=trigger_twice, meanwhile=overtake)
    assert rival
    assert rival[0]["new"] == found["rows"]["clean"]
    assert found == undisturbed.found
    assert night.states(f"{INGEST}.publish") == ["success"]
    table.note("the same run triggered twice at once", "reviews_ingest", "second trigger refused (409), one run", None)
    table.note(
        "another process publishes the same night first", "publish (commit-reviews)", "same snapshot, nothing doubled", None
    )
    table.note_all(SOME)


def _trigger(nights: Nights, run_id: str) -> int:
    api = nights.platform.api
    token = httpx.post(
        f"{api.address}/auth/token", json={"username": "admin", "password": nights.platform.password}, trust_env=False
    ).json()["access_token"]
    answer = httpx.post(
        f"{api.address}/api/v2/dags/{INGEST}/dagRuns",
        json={"logical_date": None, "dag_run_id": run_id},
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
    )
    return answer.status_code


def _ingest_here(nights: Nights) -> dict[str, int]:
    platform = nights.platform
    with as_pipeline(platform):
        settings = load_settings(_env_file=platform.desk / ".env", home=platform.folder / "rival")
        ingested = stages.ingest(settings)
        validated = stages.validate_raw(settings, ingested)
        cleaned = stages.clean(settings, ingested, validated)
        report = stages.validate_clean(settings, cleaned)
        return stages.publish(settings, ingested, validated, cleaned, report).counts


@pytest.mark.faults
def test_a_worker_killed_in_each_stage_changes_nothing(nights: Nights, undisturbed: Undisturbed, table: FaultTable) -> None:
    survive(nights, undisturbed, table, "kills", KILLS)


@pytest.mark.faults
def test_services_away_for_half_a_minute_change_nothing(nights: Nights, undisturbed: Undisturbed, table: FaultTable) -> None:
    survive(nights, undisturbed, table, "outages", OUTAGES)
