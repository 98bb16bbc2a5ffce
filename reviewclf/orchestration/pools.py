"""Makes sure that the pools of the DAGs exist before anything is scheduled.

A task whose pool is missing is never scheduled: it waits for ever, with warnings in the scheduler's log only. So
missing pools are created when a component of Airflow starts. Pools that exist keep the size they were given in the UI.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.listeners import hookimpl

POOLS = {
    "annotation": (4, "Shards that are labelled at once; size it to what the LLM server takes."),
    "gpu": (1, "Encoders that are fine-tuned at once: one per GPU."),
    "training": (2, "Candidates that are trained at once; one per GPU, or half the cores."),
}

log = logging.getLogger("reviewclf.pools")


@hookimpl
def on_starting(component: Any) -> None:
    """Create missing pools when the scheduler, DAG processor or triggerer starts."""
    # Task processes announce themselves here too, but must not touch the database: they are no jobs. A job does not
    # know its own type yet at this point, so the first to start does it.
    if type(component).__name__ == "Job":
        create_missing_pools()


def create_missing_pools() -> list[str]:
    """Create the pools that do not exist yet and return their names."""
    # Task processes load this module too and have no database, so its model is imported here.
    from airflow.models.pool import Pool
    from sqlalchemy.exc import IntegrityError

    created = []
    for name, (slots, description) in POOLS.items():
        if Pool.get_pool(name) is None:
            try:
                Pool.create_or_update_pool(name, slots, description, include_deferred=False)
            except IntegrityError:
                continue  # another component started at the same moment and was quicker
            log.info("Created pool %s with %d slots", name, slots)
            created.append(name)
    return created
