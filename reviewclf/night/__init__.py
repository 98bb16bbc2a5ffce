"""One night in one process, without Airflow: the stages of the DAGs, in their order.

What a DAG would skip is skipped here and says why; where a DAG would fail, the night goes on with what does not depend on the
failed step, and says at its end that it failed.
"""

from reviewclf.monitoring.night import NightReport
from reviewclf.night.report import render
from reviewclf.night.run import STEPS, run_night

__all__ = ["STEPS", "NightReport", "render", "run_night"]
