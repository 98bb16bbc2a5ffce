"""Send a test alert to every connection of REVIEWCLF_ALERTS__CONNECTIONS.

    hand-triggered → send

Trigger it after a change of connections or of the network: the alert takes the way that real ones take, from a worker with
its settings. The task fails and names the channels that did not take it; docs/guides/alerts.md says how each is configured.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from reviewclf.orchestration.alerts import deliver, report_failure
from reviewclf.orchestration.flow import TASK_DEFAULTS
from reviewclf.settings import load_settings

KINDS = ["failure", "deadline", "gate", "budget", "drift", "promotion"]


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    dagrun_timeout=timedelta(minutes=30),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    params={
        "kind": Param("failure", enum=KINDS, description="Sent only if REVIEWCLF_ALERTS__KINDS lists it."),
        "text": Param("This is a test. Nothing has happened.", type="string", minLength=1),
    },
    tags=["reviewclf", "operations"],
    doc_md=__doc__,
)
def reviews_alert_test() -> None:
    """Send one alert."""

    @task(execution_timeout=timedelta(minutes=5))
    def send() -> list[str]:
        """Send the alert; fail with the reasons of those channels that did not take it."""
        params = get_current_context()["params"]
        options = load_settings().alerts
        if not options.connections:
            raise AirflowFailException("REVIEWCLF_ALERTS__CONNECTIONS is empty on this worker: alerts are only logged")
        if params["kind"] not in options.kinds:
            raise AirflowFailException(f"REVIEWCLF_ALERTS__KINDS does not list {params['kind']}: it is only logged")
        undelivered = deliver(params["kind"], f"Test alert ({params['kind']})", params["text"])
        if undelivered:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in undelivered.items())
            raise AirflowFailException(f"not delivered to {reasons}")
        return list(options.connections)

    send()


reviews_alert_test()
