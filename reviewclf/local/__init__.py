"""The local platform: Airflow and MLflow on this machine, started, driven to a champion and stopped by one command."""

from reviewclf.local.processes import LocalError
from reviewclf.local.supervisor import up

__all__ = ["LocalError", "up"]
