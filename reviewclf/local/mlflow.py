"""The local MLflow server: SQLite and a folder of artifacts, readable with and without the server."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def server_command(home: Path, *, port: int) -> list[str]:
    """Make the command line of the server.

    Artifacts are addressed by their folder rather than through the server (``--no-serve-artifacts``): so runs logged
    over HTTP can be read straight from the SQLite file once the server has stopped, as ``reviewclf predict`` does.

    Parameters
    ----------
    home : Path
        Absolute folder for ``mlflow.db`` and ``artifacts``; it may hold spaces and any letters.
    port : int
        Port on 127.0.0.1.
    """
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"),
        *("--no-serve-artifacts", "--default-artifact-root", (home / "artifacts").as_uri()),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        # MLflow's own list takes «10.*», and so a name like 10.example.org that a web page lets point to this machine.
        *("--allowed-hosts", "localhost,localhost:*,127.0.0.1,127.0.0.1:*"),
    ]


def server_environment(env: dict[str, str]) -> dict[str, str]:
    """Make the environment of the server: that of all children, without the job runners of MLflow's LLM judges.

    They are seven processes of 200 MB each, take ten seconds of processor time to start, and nothing here uses them.
    """
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # The server itself must not take the address of its clients for its own store.
    return {name: value for name, value in env.items() if name != "MLFLOW_TRACKING_URI"} | own


def external_tracking_uri() -> str | None:
    """``MLFLOW_TRACKING_URI`` when the user follows a server of their own; then none is started here."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return uri or None
