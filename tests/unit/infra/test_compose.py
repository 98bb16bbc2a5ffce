"""The platform of a team as it is described in docker-compose.yaml and its parts, read as files; nothing is started."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import make_secrets
from reviewclf.settings import describe_settings

ROOT = Path(__file__).resolve().parents[3]
TOP = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
PARTS = [ROOT / part["path"] for part in TOP["include"]]
SERVICES: dict[str, dict[str, Any]] = {
    name: service for part in PARTS for name, service in yaml.safe_load(part.read_text())["services"].items()
}
TEXT = "\n".join(path.read_text() for path in (ROOT / "docker-compose.yaml", *PARTS))
ONCE = {name for name, service in SERVICES.items() if service["restart"].startswith("on-failure")}
GENERATED = {*make_secrets.SECRETS, "PROMETHEUS_BASIC"}
SECRET_NAME = re.compile(r"PASSWORD|SECRET|_KEY|API_KEYS|HEADERS|SQL_ALCHEMY_CONN|BROKER_URL|RESULT_BACKEND|TOKEN$")

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def environment(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in (SERVICES[name].get("environment") or {}).items()}


def merged() -> dict[str, Any]:
    return {"name": TOP["name"], "networks": TOP["networks"], "volumes": TOP["volumes"], "services": SERVICES}


def test_whole_and_parts_follow_the_specification(tmp_path: Path) -> None:
    whole = tmp_path / "docker-compose.json"
    whole.write_text(json.dumps(merged()))
    checker = Path(sysconfig.get_path("scripts")) / "check-jsonschema"
    command = [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yaml", *PARTS, whole]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_docker_itself_takes_it(tmp_path: Path) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no `docker compose` here: install Docker's plugin compose to have it read the files too")
    secrets = tmp_path / ".env"
    make_secrets.main(secrets)
    command = ["docker", "compose", "--env-file", secrets, "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_service_stands_in_two_parts() -> None:
    names = [name for part in PARTS for name in yaml.safe_load(part.read_text())["services"]]
    assert len(names) == len(set(names)) == len(SERVICES)


@each_service
def test_image_is_pinned_to_a_release(name: str) -> None:
    image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", SERVICES[name]["image"])
    tag = image.rpartition(":")[2]
    assert re.search(r"\d+\.\d+", tag), f"{image} moves"
    if image.startswith("reviewclf"):
        assert tag == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@each_service
def test_service_is_limited_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() >= {"cpus", "memory", "pids"}
    assert service["restart"] == "unless-stopped" or name in ONCE
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@each_service
def test_service_says_whether_it_is_well(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    if name in ONCE:
        # Its exit code is its health, and somebody has to wait for it.
        assert check == {"disable": True}
        waiting = [other for other, service in SERVICES.items() if name in service.get("depends_on", {})]
        assert waiting
        assert all(SERVICES[other]["depends_on"][name]["condition"] == "service_completed_successfully" for other in waiting)
    else:
        assert check.keys() >= {"test", "interval", "timeout", "retries", "start_period"}


@each_service
def test_service_waits_for_what_it_needs_to_be_ready(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert how == {"condition": wanted}, f"{name} on {other}"


@each_service
def test_service_has_few_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("network_mode", "none") == "none"
    # Its image writes caches of compiled kernels beside its code.
    assert service.get("read_only") is True or name == "vllm"
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


def test_ports_are_published_only_here() -> None:
    for port in itertools.chain.from_iterable(service.get("ports", []) for service in SERVICES.values()):
        assert re.fullmatch(r"\$\{REVIEWCLF_BIND:-127\.0\.0\.1\}:\$\{\w+_PORT:-\d+\}:\d+", port)


@each_service
def test_secrets_come_from_the_generated_file_alone(name: str) -> None:
    for key, value in environment(name).items():
        if not SECRET_NAME.search(key) or value == "":
            continue
        # HF_TOKEN opens models that the default is not one of.
        used = re.findall(r"\$\{(\w+):\?", value)
        assert key == "HF_TOKEN" or (used and set(used) <= GENERATED), f"{name}: {key}={value}"


def test_what_has_to_be_set_is_generated_and_what_is_generated_is_used() -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert needed <= GENERATED
    assert needed == GENERATED


def test_what_may_be_set_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/operations/team-platform.md").read_text()))
    documented |= {variable for variable, _, _ in describe_settings()}
    assert set(re.findall(r"\$\{(\w+):-", TEXT)) - documented == set()


def test_volumes_and_networks_are_declared_and_used() -> None:
    volumes = {str(volume).partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {volume for volume in volumes if re.fullmatch(r"[a-z][a-z0-9-]*", volume)} == TOP["volumes"].keys()
    assert {network for service in SERVICES.values() for network in service.get("networks", [])} == TOP["networks"].keys()


def test_mounted_files_are_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                source, _target, mode = volume.split(":")
                assert (ROOT / source).exists(), f"{name}: {source}"
                assert mode == "ro"


def test_workers_reach_neither_airflow_s_database_nor_its_keys() -> None:
    for name in ("airflow-worker", "airflow-worker-gpu"):
        own = " ".join(environment(name))
        for forbidden in ("SQL_ALCHEMY_CONN", "FERNET_KEY", "JWT_SECRET", "ADMIN"):
            assert forbidden not in own
        assert "AIRFLOW_DB_PASSWORD" not in " ".join(environment(name).values())


def test_code_of_dag_files_is_read_without_keys_to_data_or_models() -> None:
    own = environment("airflow-dag-processor")
    assert not [key for key in own if key.startswith(("AWS_", "MLFLOW_"))]


@pytest.mark.slow
def test_parts_that_airflow_is_told_to_use_can_be_loaded() -> None:
    from airflow.executors.executor_constants import CELERY_EXECUTOR
    from airflow.executors.executor_loader import ExecutorLoader

    told = environment("airflow-scheduler")
    assert told["AIRFLOW__CORE__EXECUTOR"] == CELERY_EXECUTOR
    for place in (ExecutorLoader.executors[CELERY_EXECUTOR], told["AIRFLOW__CORE__AUTH_MANAGER"]):
        module, _, name = place.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_every_part_of_airflow_has_the_settings_that_survive_faults() -> None:
    parts = [name for name in SERVICES if name.startswith("airflow-")]
    assert len(parts) >= 6
    for name in parts:
        assert {"path": "infra/airflow.env"} in SERVICES[name]["env_file"], name
    faults = dict(
        line.split("=", 1)
        for line in (ROOT / "infra" / "airflow.env").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    # Nothing that compose itself says wins over the file.
    assert not {name for part in parts for name in environment(part)} & faults.keys()
    mlflow = environment("mlflow")
    assert {name: mlflow[name] for name in ("AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS")} == {
        name: faults[name] for name in ("AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS")
    }


def test_workers_of_both_queues_are_there() -> None:
    def queue(name: str) -> str:
        command = SERVICES[name]["command"]
        return str(command[command.index("--queues") + 1])

    assert queue("airflow-worker") == "default" == environment("airflow-scheduler")["AIRFLOW__OPERATORS__DEFAULT_QUEUE"]
    assert queue("airflow-worker-gpu") == "gpu"


def test_make_up_makes_secrets_first_and_hands_its_options_on() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "up", "PROFILES=monitoring,gpu", "WORKERS=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    (secrets,) = [number for number, line in enumerate(lines) if "make_secrets.py .env" in line]
    (start,) = [number for number, line in enumerate(lines) if "docker compose up" in line]
    assert secrets < start
    options = "\n".join(lines[secrets:])
    for expected in ("COMPOSE_PROFILES='monitoring,gpu'", "AIRFLOW_METRICS=True", "REVIEWCLF_LLM__BACKEND=openai"):
        assert expected in options
    assert "--scale airflow-worker=3" in options
    assert "AIRFLOW_PARALLELISM=$(( 3 * 4 ))" in options
    plain = subprocess.run(["make", "--dry-run", "up", "PROFILES="], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "AIRFLOW_METRICS=False" in plain.stdout
    assert "REVIEWCLF_LLM__BACKEND" not in plain.stdout
