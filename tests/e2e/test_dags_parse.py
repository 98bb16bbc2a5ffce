"""The DAG files, read by Airflow itself in a process of its own: structure, schedules, limits, what parsing imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What makes parsing slow is importing one of these; how long that takes here says little about elsewhere.
HEAVY = (
    "cleanlab",
    "crowdkit",
    "great_expectations",
    "kubernetes",
    "matplotlib",
    "mlflow",
    "onnxruntime",
    "openai",
    "pandas",
    "pyarrow",
    "s3fs",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)

DESCRIBE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
sys.path.append(sys.argv[1])
before = set(sys.modules)
bag = DagBag(sys.argv[1])
imported = set(sys.modules) - before
from airflow.serialization.serialized_objects import DagSerialization

def seconds(delta):
    return None if delta is None else delta.total_seconds()

def names(callbacks):
    return [callback.__name__ for callback in (callbacks if isinstance(callbacks, (list, tuple)) else [callbacks])]

def timetable(value):
    inner = getattr(value, "timetable", value)
    assets = getattr(value, "asset_condition", None)
    return {
        "kind": type(value).__name__,
        "cron": getattr(inner, "expression", None),
        "timezone": str(getattr(inner, "timezone", None)),
        "first": str(getattr(inner, "run_immediately", None)),
        "assets": [asset.name for asset in assets.objects] if assets else [],
        "any": type(assets).__name__ == "AssetAny",
    }

print("RESULT" + json.dumps({
    "errors": bag.import_errors,
    "imported": sorted(imported),
    "dags": {
        dag.dag_id: {
            "timetable": timetable(dag.timetable),
            "catchup": dag.catchup,
            "max_active_runs": dag.max_active_runs,
            "timeout": seconds(dag.dagrun_timeout),
            "doc": dag.doc_md,
            "tags": sorted(dag.tags),
            "callbacks": bool(dag.on_failure_callback),
            "paused": dag.is_paused_upon_creation,
            "params": {name: param.schema | {"value": param.value if isinstance(param.value, (str, bool)) else None}
                       for name, param in ((name, dag.params.get_param(name)) for name in dag.params)},
            "serialized": bool(DagSerialization.to_dict(dag)),
            "tasks": {
                task.task_id: {
                    "upstream": sorted(task.upstream_task_ids),
                    "mapped": bool(task.is_mapped),
                    "pool": task.pool,
                    "retries": task.retries,
                    "backoff": task.retry_exponential_backoff,
                    "timeout": seconds(task.execution_timeout),
                    "outlets": [asset.name for asset in task.outlets],
                    "doc": task.doc_md,
                    "trigger_rule": str(getattr(task.trigger_rule, "value", task.trigger_rule)),
                    "index": task.map_index_template if task.is_mapped else None,
                    "callbacks": names(task.on_failure_callback),
                }
                for task in dag.tasks
            },
        }
        for dag in bag.dags.values()
    },
}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", DESCRIBE, str(ROOT / "dags")]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    results = [line for line in answer.stdout.splitlines() if line.startswith("RESULT")]
    assert results, answer.stderr
    found: dict[str, Any] = json.loads(results[0].removeprefix("RESULT"))
    return found


def tasks_of(parsed: dict[str, Any], dag_id: str) -> dict[str, Any]:
    tasks: dict[str, Any] = parsed["dags"][dag_id]["tasks"]
    return tasks


def every_task(parsed: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{dag_id}.{name}", task) for dag_id, dag in parsed["dags"].items() for name, task in dag["tasks"].items()]


def test_airflow_reads_the_dags_without_errors(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert {"reviews_ingest", "reviews_label", "reviews_retrain", "reviews_score", "reviews_maintain"} <= parsed["dags"].keys()
    assert all(dag["serialized"] for dag in parsed["dags"].values())


def test_dag_files_import_nothing_heavy(parsed: dict[str, Any]) -> None:
    roots = {name.partition(".")[0] for name in parsed["imported"]}
    assert "reviewclf" in roots, "the DAG files should have been imported in this process"
    assert roots & set(HEAVY) == set()


def test_ingest_goes_through_both_checks_before_it_publishes(parsed: dict[str, Any]) -> None:
    assert {name: task["upstream"] for name, task in tasks_of(parsed, "reviews_ingest").items()} == {
        "ingest": [],
        "validate_raw": ["ingest"],
        "clean": ["ingest", "validate_raw"],
        "validate_clean": ["clean"],
        "publish": ["clean", "ingest", "validate_clean", "validate_raw"],
    }


def test_label_maps_annotation_over_shards(parsed: dict[str, Any]) -> None:
    tasks = tasks_of(parsed, "reviews_label")
    assert {name: task["upstream"] for name, task in tasks.items()} == {
        "select": [],
        "shards": ["select"],
        "annotate": ["select", "shards"],
        "collect": ["annotate", "select"],
        "wait_for_people": ["collect"],
        "ask_people": ["wait_for_people"],
        "aggregate": ["annotate", "ask_people", "select"],
    }
    assert [name for name, task in tasks.items() if task["mapped"]] == ["annotate"]
    assert tasks["annotate"]["pool"] == "annotation"
    assert tasks["aggregate"]["trigger_rule"] == "none_failed"


def test_retrain_maps_training_over_candidates_and_gates_before_promotion(parsed: dict[str, Any]) -> None:
    tasks = tasks_of(parsed, "reviews_retrain")
    assert {name: task["upstream"] for name, task in tasks.items()} == {
        "candidates": [],
        "encoders": [],
        "plan_synthesis": [],
        "thin_classes": ["plan_synthesis"],
        "synthesize": ["plan_synthesis", "thin_classes"],
        "build_dataset": ["synthesize"],
        "train": ["build_dataset", "candidates"],
        "finetune": ["build_dataset", "encoders"],
        "evaluate": ["build_dataset", "finetune", "train"],
        "gate": ["evaluate"],
        "wait_for_person": ["gate"],
        "ask_person": ["wait_for_person"],
        "promote": ["ask_person", "gate"],
        "retire": ["promote"],
    }
    assert tasks["promote"]["trigger_rule"] == tasks["retire"]["trigger_rule"] == "none_failed"
    assert sorted(name for name, task in tasks.items() if task["mapped"]) == ["finetune", "synthesize", "train"]
    assert tasks["synthesize"]["pool"] == "annotation"
    # A writer who is away costs the night nothing but what he would have written.
    assert tasks["build_dataset"]["trigger_rule"] == "all_done"
    assert tasks["finetune"]["pool"] == "gpu"
    # A candidate that fails, or is skipped, costs the night no other.
    assert tasks["evaluate"]["trigger_rule"] == "all_done"
    assert tasks["train"]["pool"] == "training"


def test_score_maps_over_shards_and_looks_at_production_after_publishing(parsed: dict[str, Any]) -> None:
    tasks = tasks_of(parsed, "reviews_score")
    assert {name: task["upstream"] for name, task in tasks.items()} == {
        "select": [],
        "shards": ["select"],
        "score": ["select", "shards"],
        "publish": ["score", "select"],
        "monitor": ["publish"],
        "alarm": ["monitor"],
    }
    assert [name for name, task in tasks.items() if task["mapped"]] == ["score"]


def test_hand_triggered_dags_ask_for_what_they_need_and_are_ready_to_run(parsed: dict[str, Any]) -> None:
    promote, rollback = (parsed["dags"][name] for name in ("reviews_promote", "reviews_rollback"))
    for dag in (promote, rollback):
        assert dag["paused"] is False
        assert dag["timetable"]["cron"] is None
        assert dag["timetable"]["assets"] == []
    assert sorted(promote["params"]) == ["force", "reason", "version"]
    assert promote["params"]["force"]["value"] is False
    # Neither the version nor the reason of a promotion is filled in for anybody.
    assert [promote["params"][name]["value"] for name in ("version", "reason")] == [None, None]
    assert sorted(rollback["params"]) == ["reason"]


def test_new_nightly_dags_wait_for_the_next_night(parsed: dict[str, Any]) -> None:
    # With the default, Airflow runs a DAG that it sees for the first time up to 2.4 hours after its hour at once.
    for dag_id in ("reviews_ingest", "reviews_retrain", "reviews_maintain"):
        assert parsed["dags"][dag_id]["timetable"]["first"] == "0:00:01", dag_id


def test_assets_link_the_dags_and_are_emitted_where_something_is_published(parsed: dict[str, Any]) -> None:
    assert {name: task["outlets"] for name, task in every_task(parsed) if task["outlets"]} == {
        "reviews_ingest.publish": ["reviews_clean"],
        "reviews_label.aggregate": ["reviews_labelled"],
        "reviews_retrain.promote": ["review_classifier"],
        "reviews_score.publish": ["reviews_scored"],
        "reviews_score.alarm": ["reviews_drifted"],
        "reviews_promote.promote": ["review_classifier"],
        "reviews_rollback.rollback": ["review_classifier"],
    }
    assert parsed["dags"]["reviews_label"]["timetable"]["assets"] == ["reviews_clean"]
    assert parsed["dags"]["reviews_retrain"]["timetable"]["assets"] == ["reviews_labelled", "reviews_drifted"]
    assert parsed["dags"]["reviews_retrain"]["timetable"]["any"]
    assert parsed["dags"]["reviews_score"]["timetable"]["assets"] == ["reviews_clean", "review_classifier"]
    assert parsed["dags"]["reviews_score"]["timetable"]["any"]


def test_nights_are_those_of_moscow(parsed: dict[str, Any]) -> None:
    for dag_id, cron in (("reviews_maintain", "0 1 * * *"), ("reviews_ingest", "0 2 * * *"), ("reviews_retrain", "0 4 * * *")):
        timetable = parsed["dags"][dag_id]["timetable"]
        assert (timetable["cron"], timetable["timezone"]) == (cron, "Europe/Moscow")


def test_runs_never_overlap_pile_up_or_last_for_ever(parsed: dict[str, Any]) -> None:
    for dag_id, dag in parsed["dags"].items():
        assert dag["max_active_runs"] == 1, dag_id
        assert dag["catchup"] is False, dag_id
        longest = max(task["timeout"] for task in dag["tasks"].values())
        assert longest < dag["timeout"] <= 24 * 3600, dag_id


def test_every_task_retries_with_backoff_ends_in_time_and_reports_failure(parsed: dict[str, Any]) -> None:
    for name, task in every_task(parsed):
        assert task["retries"] >= 2, name
        assert task["backoff"] > 1, name
        assert task["timeout"], name
        assert task["callbacks"] == ["report_failure"], name


def test_dags_and_tasks_explain_themselves(parsed: dict[str, Any]) -> None:
    for dag_id, dag in parsed["dags"].items():
        assert "→" in dag["doc"], dag_id
        assert "reviewclf" in dag["tags"], dag_id
        assert dag["callbacks"], dag_id
    assert [name for name, task in every_task(parsed) if not task["doc"]] == []
    assert [name for name, task in every_task(parsed) if task["mapped"] and not task["index"]] == []


def test_plugin_creates_exactly_the_pools_that_tasks_ask_for(parsed: dict[str, Any], tmp_path: Path) -> None:
    wanted = {task["pool"] for _, task in every_task(parsed)} - {"default_pool"}
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    }
    create = """
import json
from airflow.utils.db import initdb
initdb()
from airflow.models.pool import Pool
from airflow.jobs.job import Job
Pool.create_or_update_pool("training", 7, "sized by hand", include_deferred=False)
Job()
print("RESULT" + json.dumps({pool.pool: pool.slots for pool in Pool.get_pools()}))
"""
    answer = subprocess.run([sys.executable, "-c", create], env=env, capture_output=True, text=True, timeout=120, check=False)
    results = [line for line in answer.stdout.splitlines() if line.startswith("RESULT")]
    assert results, answer.stderr
    pools = json.loads(results[0].removeprefix("RESULT"))
    assert pools.keys() - {"default_pool"} == wanted
    assert pools["training"] == 7, "a pool that exists keeps its size"
