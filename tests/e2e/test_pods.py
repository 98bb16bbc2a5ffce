"""The retrain DAG as the KubernetesExecutor gets it, read by Airflow in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="no Kubernetes client here: pip install 'reviewclf[team]' to check pods")

ROOT = Path(__file__).resolve().parents[2]

DESCRIBE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
sys.path.append(sys.argv[1])
bag = DagBag(sys.argv[1])
from airflow.serialization.serialized_objects import DagSerialization
dag = DagSerialization.from_dict(DagSerialization.to_dict(bag.dags["reviews_retrain"]))

def pod(task):
    config = task.partial_kwargs.get("executor_config") if task.is_mapped else task.executor_config
    return config["pod_override"].to_dict()["spec"] if config else None

print("RESULT" + json.dumps({
    "errors": bag.import_errors,
    "pods": {task.task_id: pod(task) for task in dag.tasks},
    "kubernetes": any(name.partition(".")[0] == "kubernetes" for name in sys.modules),
}))
"""


def parsed(home: Path, **variables: str) -> dict[str, Any]:
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    command = [sys.executable, "-c", DESCRIBE, str(ROOT / "dags")]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    results = [line for line in answer.stdout.splitlines() if line.startswith("RESULT")]
    assert results, answer.stderr
    found: dict[str, Any] = json.loads(results[0].removeprefix("RESULT"))
    assert found["errors"] == {}
    return found


@pytest.fixture(scope="module")
def on_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return parsed(
        tmp_path_factory.mktemp("airflow"),
        AIRFLOW__CORE__EXECUTOR="KubernetesExecutor",
        REVIEWCLF_TRAINING__GPU="true",
        REVIEWCLF_TRAINING__GPU_IMAGE="registry.example.com/reviewclf-gpu:0.1.0",
    )


def test_finetune_gets_a_gpu_its_image_and_a_node_that_has_one(on_kubernetes: dict[str, Any]) -> None:
    pod = on_kubernetes["pods"]["finetune"]
    (container,) = pod["containers"]
    assert (container["name"], container["image"]) == ("base", "registry.example.com/reviewclf-gpu:0.1.0")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_heavy_tasks_ask_for_what_they_need_and_light_ones_for_nothing(on_kubernetes: dict[str, Any]) -> None:
    pods = on_kubernetes["pods"]
    assert {name for name, pod in pods.items() if pod} == {"build_dataset", "train", "finetune", "evaluate"}
    (container,) = pods["train"]["containers"]
    assert container["image"] is None
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert container["resources"]["limits"] == {"memory": container["resources"]["requests"]["memory"]}


def test_other_executors_get_no_pods_and_do_not_load_the_client(tmp_path: Path) -> None:
    found = parsed(tmp_path, AIRFLOW__CORE__EXECUTOR="LocalExecutor", REVIEWCLF_TRAINING__GPU="true")
    assert set(found["pods"].values()) == {None}
    assert found["kubernetes"] is False
