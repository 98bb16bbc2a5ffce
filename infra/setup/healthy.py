"""Health of a service, asked from inside its container: exit code 0 when well. Light: it runs every few seconds.

::

    healthy.py URL              answers 2xx
    healthy.py airflow PART     the API server says that PART (scheduler, triggerer, dag_processor) has a fresh heartbeat
    healthy.py worker           the Celery worker of this container answers through the broker
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request

API = "http://airflow-api-server:8080/api/v2/monitor/health"


def main(arguments: list[str]) -> int:
    """Ask as the arguments say; returns the exit code."""
    match arguments:
        case ["airflow", part]:
            return 0 if json.loads(_get(os.environ.get("AIRFLOW_HEALTH_URL", API)))[part]["status"] == "healthy" else 1
        case ["worker"]:
            return 0 if _worker_answers() else 1
        case [url]:
            _get(url)
            return 0
    print(__doc__, file=sys.stderr)
    return 2


def _get(url: str) -> bytes:
    # Only ever addresses of the compose file; never through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def _worker_answers() -> bool:
    from celery import Celery

    app = Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"])
    return bool(app.control.ping(destination=[f"celery@{socket.gethostname()}"], timeout=5))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
