"""The manifests in infra/kubernetes: valid against the API's own model, and careful with what they run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reviewclf.settings import describe_settings

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "infra" / "kubernetes"
MANIFESTS = ("namespace.yaml", "mlflow.yaml", "serving.yaml", "gpu/vllm.yaml")
VALUES = ("airflow-values.yaml", "airflow-values-kubernetes.yaml", "airflow-values-celery.yaml")
SECRET_NAME = re.compile(r"password|secret|token|(access|api|fernet)_?key", re.IGNORECASE)
HARMLESS = ("SecretName", "automountServiceAccountToken")


def documents() -> list[dict[str, Any]]:
    return [document for name in MANIFESTS for document in yaml.safe_load_all((FOLDER / name).read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] == kind]


def named(documents: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("document", documents, ids=[f"{d['kind']}-{d['metadata']['name']}" for d in documents])


def containers(deployment: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Each container, and whether it goes on for ever."""
    spec = deployment["spec"]["template"]["spec"]
    yield from ((container, False) for container in spec.get("initContainers", ()))
    yield from ((container, True) for container in spec["containers"])


def faults(value: Any, kind: str, path: str) -> Iterator[str]:
    """What the API's model, as the client library has it, does not know or misses."""
    from kubernetes.client import models

    if value is None:
        return
    if kind.startswith("list["):
        if not isinstance(value, list):
            yield f"{path}: a list is expected"
            return
        for number, item in enumerate(value):
            yield from faults(item, kind[5:-1], f"{path}[{number}]")
    elif kind.startswith("dict("):
        for key, item in value.items():
            yield from faults(item, kind[5:-1].split(", ", 1)[1], f"{path}.{key}")
    elif hasattr(models, kind):
        model = getattr(models, kind)
        names = {there: here for here, there in model.attribute_map.items()}
        for key in value.keys() - names.keys():
            yield f"{path}.{key}: unknown"
        known = {names[key]: item for key, item in value.items() if key in names}
        try:
            model(**known)
        except ValueError as error:
            yield f"{path}: {error}"
        for name, item in known.items():
            yield from faults(item, model.openapi_types[name], f"{path}.{model.attribute_map[name]}")
    elif (kind == "str" and not isinstance(value, str)) or (kind == "int" and type(value) is not int):
        yield f"{path}: {value!r} is no {kind}"


MODELS = {
    "Namespace": "V1Namespace",
    "ServiceAccount": "V1ServiceAccount",
    "Deployment": "V1Deployment",
    "Service": "V1Service",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
    "NetworkPolicy": "V1NetworkPolicy",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
}


@named(documents())
def test_manifest_is_valid(document: dict[str, Any]) -> None:
    pytest.importorskip("kubernetes", reason="no Kubernetes client here: pip install 'reviewclf[team]' to check the manifests")
    assert list(faults(document, MODELS[document["kind"]], document["metadata"]["name"])) == []


def test_the_check_finds_a_misspelt_field_a_missing_one_and_a_wrong_type() -> None:
    pytest.importorskip("kubernetes", reason="no Kubernetes client here: pip install 'reviewclf[team]' to check the manifests")
    container = {"name": "x", "readinesProbe": {}, "ports": [{"name": "http"}], "image": 3}
    found = sorted(faults(container, "V1Container", "x"))
    assert [line.partition(":")[0] for line in found] == ["x.image", "x.ports[0]", "x.readinesProbe"]


@named(of_kind("Deployment"))
def test_pods_run_without_root_rights_writable_images_and_api_tokens(document: dict[str, Any]) -> None:
    pod = document["spec"]["template"]["spec"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] in [account["metadata"]["name"] for account in of_kind("ServiceAccount")]
    for container, _ in containers(document):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@named(of_kind("Deployment"))
def test_containers_have_probes_and_limits(document: dict[str, Any]) -> None:
    for container, lasting in containers(document):
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert "memory" in resources["limits"]
        if lasting:
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"]["port"] in ports, probe


def test_serving_is_replaced_without_a_gap_and_grows() -> None:
    serving = next(document for document in of_kind("Deployment") if document["metadata"]["name"] == "serving")
    assert serving["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (container,) = serving["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    drain = next(int(entry["value"]) for entry in container["env"] if entry["name"] == "REVIEWCLF_SERVING__DRAIN_SECONDS")
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + drain < serving["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "serving"
    assert scaler["spec"]["minReplicas"] >= 2
    # Two hands on one number: each deployment would throw the autoscaler's away.
    assert "replicas" not in serving["spec"]


def test_services_budgets_and_policies_select_the_pods_they_are_named_after() -> None:
    deployments = {document["metadata"]["name"]: document for document in of_kind("Deployment")}
    for document in documents():
        spec = document.get("spec", {})
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "Service":
            (container,) = deployments[name]["spec"]["template"]["spec"]["containers"]
            selected = spec["selector"]
            assert {port["targetPort"] for port in spec["ports"]} <= {port["name"] for port in container["ports"]}
        elif kind == "PodDisruptionBudget":
            selected = spec["selector"]["matchLabels"]
        elif kind == "NetworkPolicy":
            selected = spec["podSelector"]["matchLabels"]
        else:
            continue
        assert selected.items() <= deployments[name]["spec"]["template"]["metadata"]["labels"].items(), f"{kind} {name}"
    policies = {document["metadata"]["name"]: document["spec"] for document in of_kind("NetworkPolicy")}
    assert policies.keys() == deployments.keys()
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    assert all(entry["from"] for policy in policies.values() for entry in policy["ingress"]), "open to everybody"


def test_images_are_pinned_and_the_same_everywhere() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (ours,) = kustomization["images"]
    values = yaml.safe_load((FOLDER / "airflow-values.yaml").read_text())
    assert (values["images"]["airflow"]["repository"], values["images"]["airflow"]["tag"]) == (ours["newName"], ours["newTag"])
    assert (values["defaultAirflowRepository"], values["defaultAirflowTag"]) == (ours["newName"], ours["newTag"])
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert ours["newTag"] == version[1]
    for deployment in of_kind("Deployment"):
        for container, _ in containers(deployment):
            image = container["image"]
            assert image == ours["name"] or re.fullmatch(r".+:v?\d+\.\d+\.\d+", image), image


def test_airflow_of_the_values_is_the_one_that_is_locked() -> None:
    locked = re.search(r"^apache-airflow==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert locked
    assert yaml.safe_load((FOLDER / "airflow-values.yaml").read_text())["airflowVersion"] == locked[1]


def scalars(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        pair = value.get("name"), value.get("value")
        if all(isinstance(part, str) for part in pair):
            yield pair  # type: ignore[misc]
        for key, item in value.items():
            yield from scalars(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from scalars(item, name)
    else:
        yield name, value


def test_no_secret_is_written_down() -> None:
    found = [*documents(), *(yaml.safe_load((FOLDER / name).read_text()) for name in VALUES)]
    assert [document for document in found if document.get("kind") == "Secret"] == []
    suspicious = [name for name, _ in scalars(found) if SECRET_NAME.search(name) and not name.endswith(HARMLESS)]
    assert suspicious == []
    literals = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["configMapGenerator"][0]["literals"]
    assert [literal for literal in literals if SECRET_NAME.search(literal.partition("=")[0])] == []


def test_every_secret_that_is_named_is_explained_and_every_setting_exists() -> None:
    page = (ROOT / "docs/operations/kubernetes.md").read_text(encoding="utf-8")
    text = "\n".join((FOLDER / name).read_text() for name in (*MANIFESTS, *VALUES))
    names = set(re.findall(r"secretRef: \{name: ([\w-]+)\}", text)) | set(re.findall(r"\w+SecretName: ([\w-]+)", text))
    assert len(names) >= 8
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    settings = [literal.partition("=")[0] for literal in kustomization["configMapGenerator"][0]["literals"]]
    known = {variable for variable, _, _ in describe_settings()}
    assert {name for name in settings if name.startswith("REVIEWCLF_")} <= known
    maps = set(re.findall(r"configMapKeyRef: \{name: reviewclf-settings, key: (\w+)\}", text))
    assert maps <= set(settings)


def test_kustomization_lists_every_manifest() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    component = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())
    listed = [*kustomization["resources"], *(f"gpu/{name}" for name in component["resources"])]
    assert sorted(listed) == sorted(MANIFESTS)
