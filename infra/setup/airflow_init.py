"""Brings Airflow's database up to date and makes the first account. Run at every start, before anything else of Airflow."""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> None:
    """Migrate, then make the account `admin` with the password of the environment unless it is there."""
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        if manager.find_user("admin"):
            print("account admin is there already", flush=True)
            return
        role = manager.find_role("Admin")
        email = os.environ.get("AIRFLOW_ADMIN_EMAIL", "admin@localhost.localdomain")
        # Not by `airflow users create`: its password would stand in the list of processes.
        made = manager.add_user("admin", "Platform", "Admin", email, role, os.environ["AIRFLOW_ADMIN_PASSWORD"])
        if not made:
            sys.exit("Airflow did not make the account admin; see the lines above")
        print("account admin created", flush=True)


if __name__ == "__main__":
    main()
