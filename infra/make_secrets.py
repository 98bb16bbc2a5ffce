"""Writes the secrets of the platform into `.env`, each drawn by chance: `make up` calls it before anything starts.

What is there stays, so it can run as often as one likes; a release that needs another secret gets it at its first start.
Only the standard library is needed, and the file is readable by its owner alone.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def _password() -> str:
    # Letters, digits, - and _ alone: nothing that an address, a shell or YAML reads in a way of its own.
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _access_key() -> str:
    return secrets.token_hex(10)


SECRETS: dict[str, tuple[Callable[[], str], str]] = {
    "POSTGRES_PASSWORD": (_password, "PostgreSQL's superuser; only the job that makes roles uses it"),
    "AIRFLOW_DB_PASSWORD": (_password, "role airflow: Airflow's own database"),
    "CELERY_DB_PASSWORD": (_password, "role celery: results of workers"),
    "MLFLOW_DB_PASSWORD": (_password, "role mlflow: MLflow's two databases"),
    "REDIS_PASSWORD": (_password, "user airflow: messages to workers"),
    "S3_ADMIN_ACCESS_KEY": (_access_key, "identity admin: makes the buckets"),
    "S3_ADMIN_SECRET_KEY": (_password, ""),
    "S3_MLFLOW_ACCESS_KEY": (_access_key, "identity mlflow: the bucket of artifacts"),
    "S3_MLFLOW_SECRET_KEY": (_password, ""),
    "S3_PLATFORM_ACCESS_KEY": (_access_key, "identity platform: the bucket of the store"),
    "S3_PLATFORM_SECRET_KEY": (_password, ""),
    "MLFLOW_ADMIN_PASSWORD": (_password, "MLflow, account admin: for people"),
    "MLFLOW_PLATFORM_PASSWORD": (_password, "MLflow, account platform: Airflow's tasks"),
    "MLFLOW_SERVING_PASSWORD": (_password, "MLflow, account serving: reads the champion"),
    "MLFLOW_SESSION_SECRET": (_password, "signs sessions of MLflow's pages"),
    "AIRFLOW_ADMIN_PASSWORD": (_password, "Airflow, account admin: for people"),
    "AIRFLOW_FERNET_KEY": (_fernet_key, "encrypts connections and variables in Airflow's database"),
    "AIRFLOW_API_SECRET": (_password, "signs requests for logs"),
    # 64 bytes: tokens are signed with HS512.
    "AIRFLOW_JWT_SECRET": (lambda: secrets.token_urlsafe(64), "signs the passes of people and tasks"),
    "SERVING_API_KEYS": (_password, "who may ask `reviewclf serve`: comma-separated, one for each client"),
    "VLLM_API_KEY": (_password, "asks the model server of the profile gpu"),
    "PROMETHEUS_PASSWORD": (_password, "Prometheus, user metrics"),
    "GRAFANA_ADMIN_PASSWORD": (_password, "Grafana, account admin: for people"),
}


def fill(text: str) -> tuple[str, list[str]]:
    """Add what is missing to the content of a `.env` file.

    Parameters
    ----------
    text : str
        The file as it is; empty for a new one.

    Returns
    -------
    tuple of (str, list of str)
        The content with every secret, and the names that were added. What follows from another secret is made anew.
    """
    lines = text.splitlines()
    values = _values(lines)
    added = [name for name in SECRETS if not values.get(name)]
    # An empty value would stand before the one that is added, or behind it.
    lines = [line for line in lines if _name(line) not in {*added, "PROMETHEUS_BASIC"}]
    if not text:
        lines.append(
            "# Secrets of this platform, made by infra/make_secrets.py. Keep a copy where you keep passwords; never commit it."
        )
    for name in added:
        make, meaning = SECRETS[name]
        values[name] = make()
        lines += [f"# {meaning}"] if meaning else []
        lines.append(f"{name}={values[name]}")
    # The header that a password becomes; Airflow sends its figures with it.
    basic = base64.b64encode(f"metrics:{values['PROMETHEUS_PASSWORD']}".encode()).decode()
    lines.append(f"PROMETHEUS_BASIC={basic}")
    return "\n".join(lines) + "\n", added


def _name(line: str) -> str:
    return "" if line.lstrip().startswith("#") else line.partition("=")[0].removeprefix("export ").strip()


def _values(lines: list[str]) -> dict[str, str]:
    return {_name(line): line.partition("=")[2].strip().strip("'\"") for line in lines if _name(line)}


def main(path: Path) -> None:
    """Fill the file, whole or not at all, and say which names are new; never a value."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after, added = fill(before)
    if after != before:
        # mkstemp makes the file readable by its owner alone, before there is anything in it.
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(after)
            Path(draft).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(draft).unlink()
            raise
    path.chmod(0o600)
    if added:
        print(f"{path}: made {', '.join(added)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".env"))
