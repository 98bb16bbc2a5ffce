"""What a task asks of its pod where Airflow runs tasks as pods (KubernetesExecutor); nothing at all elsewhere."""

from __future__ import annotations

from typing import Any

from airflow.sdk.configuration import conf

_KUBERNETES = "KubernetesExecutor"
_GPU = "nvidia.com/gpu"


def pod(*, cpu: str, memory: str, gpu: bool = False, image: str | None = None) -> dict[str, Any]:
    """Make the ``executor_config`` of a task.

    Parameters
    ----------
    cpu, memory : str
        Requested, in Kubernetes' units. Memory is the limit as well: a task that needs more is ended rather than its node.
    gpu : bool
        One GPU, on nodes that are kept for such pods.
    image : str, optional
        With the packages for that GPU; default: the image of all tasks.

    Returns
    -------
    dict
        With ``pod_override``; empty unless the KubernetesExecutor is configured.
    """
    if _KUBERNETES not in conf.get("core", "executor", fallback=""):
        return {}
    # Half a second to import, so only where it is needed.
    from kubernetes.client import models as k8s

    device = {_GPU: "1"} if gpu else {}
    container = k8s.V1Container(
        name="base",
        image=image,
        resources=k8s.V1ResourceRequirements(
            requests={"cpu": cpu, "memory": memory, **device}, limits={"memory": memory, **device}
        ),
    )
    tolerations = [k8s.V1Toleration(key=_GPU, operator="Exists", effect="NoSchedule")] if gpu else None
    return {"pod_override": k8s.V1Pod(spec=k8s.V1PodSpec(containers=[container], tolerations=tolerations))}
