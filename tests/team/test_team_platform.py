"""The same DAGs on Celery workers, PostgreSQL, Redis, S3 and an MLflow server with accounts."""

from __future__ import annotations

import httpx

from tests.team.conftest import Nights, Undisturbed
from tests.team.night import as_pipeline

TASKS = {
    "reviews_ingest": ("ingest", "validate_raw", "clean", "validate_clean", "publish"),
    "reviews_label": ("select", "annotate", "collect", "aggregate"),
    "reviews_retrain": ("plan_synthesis", "synthesize", "build_dataset", "train", "evaluate", "gate", "promote"),
}


def test_reviews_become_a_champion(undisturbed: Undisturbed) -> None:
    for dag_id, tasks in TASKS.items():
        for task in tasks:
            states = undisturbed.night.states(f"{dag_id}.{task}")
            assert states, f"{dag_id}.{task} is not there"
            assert set(states) == {"success"}
    found = undisturbed.found
    (champion,) = [row for row in found["registry"] if row[2] == "champion"]
    assert champion[1] == "passed"
    assert {row[0] for row in found["registry"]} == {"logreg", "linear-svc"}
    assert found["promoted"] == 1
    assert set(found["events"].values()) == {1}
    assert found["figures"][champion[0]]["gold/weighted_f1"] >= 0.74


def test_both_workers_take_tasks(undisturbed: Undisturbed, nights: Nights) -> None:
    assert undisturbed.night.tasks
    logs = {name: nights.platform.servers[name].log.read_text() for name in ("worker-1", "worker-2")}
    for name, log in logs.items():
        assert "execute_workload" in log, f"{name} got nothing to do"


def test_models_lie_in_s3_and_are_handed_out_by_mlflow_alone(undisturbed: Undisturbed, nights: Nights) -> None:
    import boto3

    with as_pipeline(nights.platform):
        listed = boto3.client("s3").list_objects_v2(Bucket="mlflow")
    assert any(entry["Key"].endswith("MLmodel") for entry in listed["Contents"])
    assert undisturbed.night.tasks


def test_mlflow_asks_for_an_account(nights: Nights) -> None:
    address = f"{nights.platform.tracking_uri}/api/2.0/mlflow/experiments/search"
    assert httpx.post(address, json={"max_results": 5}, trust_env=False).status_code == 401
    wrong = httpx.post(address, json={"max_results": 5}, auth=("pipeline", "password"), trust_env=False)
    assert wrong.status_code == 401
