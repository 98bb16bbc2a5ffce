"""Where the result of a task can be looked at: pages of :mod:`reviewclf.pages.app`, by the task's manifest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MLFLOW_RUN, DATA_DOCS, GATE_REPORT, PROMOTION = "MLflow run", "Data docs", "Gate report", "Promotion page"

# Below this folder of the data docs everything is a page.
_SITE = "/local_site/"


def links_of(manifest: Any) -> dict[str, str]:
    """Paths by name of the link, each beginning with a slash; empty for what is no manifest.

    Parameters
    ----------
    manifest : dict
        As it came through XCom.
    """
    if not isinstance(manifest, Mapping) or not {"stage", "digest", "details"} <= manifest.keys():
        return {}
    details: Mapping[str, Any] = manifest["details"]
    links = {MLFLOW_RUN: _run(manifest, details), DATA_DOCS: _docs(details.get("data_docs"))}
    version = _version(details)
    if version is not None:
        links[GATE_REPORT] = f"/gate/{version}"
        links[PROMOTION] = f"/promotion?version={version}"
    return {name: path for name, path in links.items() if path}


def _run(manifest: Mapping[str, Any], details: Mapping[str, Any]) -> str | None:
    if details.get("run_id"):
        return f"/runs/{details['run_id']}"
    if manifest["stage"] in ("dataset", "aggregate"):
        return f"/runs/of/{manifest['digest']}"
    if manifest["stage"] == "evaluate" and details.get("dataset"):
        return f"/runs/of/{details['dataset']}"
    challenger = details.get("challenger")
    return f"/runs/{challenger['run_id']}" if isinstance(challenger, Mapping) and challenger.get("run_id") else None


def _docs(address: Any) -> str | None:
    """Of a page of the data docs, whatever machine wrote it; of `raw` and `clean` together the index."""
    if isinstance(address, Mapping):
        return "/docs/index.html" if any(address.values()) else None
    if not isinstance(address, str) or _SITE not in address:
        return None
    return "/docs/" + quote(unquote(urlsplit(address).path).partition(_SITE)[2])


def _version(details: Mapping[str, Any]) -> str | None:
    """The version that a gate or a promotion was about: the challenger, else the first that was judged."""
    challenger = details.get("challenger")
    if isinstance(challenger, Mapping):
        return str(challenger["version"])
    verdicts = details.get("verdicts")
    if isinstance(verdicts, Mapping) and verdicts:
        return str(next(iter(verdicts.values()))["version"])
    return str(details["champion"]) if details.get("champion") and "promoted" in details else None
