"""Where version 0.1.0 had its alerts: Airflow's database names it for the deadlines of runs queued before the upgrade."""

from reviewclf.orchestration.alerts import report_deadline

__all__ = ["report_deadline"]
