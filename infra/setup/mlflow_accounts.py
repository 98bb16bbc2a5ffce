"""Accounts of the MLflow server: those of the services at every start, and people's by hand.

Without arguments: makes the accounts `platform` (Airflow's tasks; owns the experiment and the registered model) and `serving`
(reads), or gives them the passwords of the environment again. Then::

    mlflow_accounts.py person NAME            sees everything; prints a password, which the person changes
    mlflow_accounts.py person NAME --promote  may also change runs and move aliases
    mlflow_accounts.py remove NAME
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from typing import Any

EXPERIMENT = "review-classifier"
SERVICES = ("platform", "serving")


def main(arguments: list[str]) -> None:
    """Do what the arguments say; the server's address and the admin's password come from the environment."""
    parser = argparse.ArgumentParser(prog="mlflow-accounts", description="Accounts of the MLflow server.")
    commands = parser.add_subparsers(dest="command")
    person = commands.add_parser("person", help="make an account, or give it a new password")
    person.add_argument("name")
    person.add_argument("--promote", action="store_true", help="may change runs and move aliases, so promote and roll back")
    commands.add_parser("remove", help="remove an account").add_argument("name")
    asked = parser.parse_args(arguments)
    client = _admin()
    if asked.command == "person":
        password = secrets.token_urlsafe(18)
        set_password(client, asked.name, password)
        if asked.promote:
            allow_promotion(client, asked.name)
        print(f"{asked.name}: {password}", flush=True)
    elif asked.command == "remove":
        client.delete_user(asked.name)
    else:
        for name in SERVICES:
            set_password(client, name, os.environ[f"MLFLOW_{name.upper()}_PASSWORD"])
            print(f"account {name} is ready", flush=True)
        own_everything()


def _admin() -> Any:
    from mlflow.server import get_app_client

    os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_ADMIN_PASSWORD"]
    return get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


def set_password(client: Any, name: str, password: str) -> None:
    """Make the account `name`, or change its password when it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_user(name, password)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_user_password(name, password)


def own_everything() -> None:
    """Make the experiment and the registered model as the account `platform`, which so may change them."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    os.environ["MLFLOW_TRACKING_USERNAME"] = "platform"
    os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_PLATFORM_PASSWORD"]
    from reviewclf.registry.tracking import Tracker

    Tracker(os.environ["MLFLOW_TRACKING_URI"])
    try:
        MlflowClient().create_registered_model(
            EXPERIMENT, description="Product category of a Russian marketplace review. Production follows `champion`."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def allow_promotion(client: Any, name: str) -> None:
    """Let `name` change the experiment and the registered model."""
    from mlflow import MlflowClient

    experiment = MlflowClient().get_experiment_by_name(EXPERIMENT)
    client.grant_user_permission(name, "experiment", experiment.experiment_id, "EDIT")
    client.grant_user_permission(name, "registered_model", EXPERIMENT, "EDIT")


if __name__ == "__main__":
    main(sys.argv[1:])
