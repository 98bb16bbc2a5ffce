"""Buttons on a task instance: to its run in MLflow, its data docs, the gate's report and the promotion page.

The API server asks for them when somebody opens the task; they come from the manifest that the task handed on (XCom), so a task
needs nothing for it, and lead through the pages of :mod:`reviewclf.orchestration.page`, which stand behind Airflow's login.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.standard.decorators.python import _PythonDecoratedOperator
from airflow.sdk import BaseOperatorLink

from reviewclf.orchestration.page import PREFIX, root_path
from reviewclf.orchestration.results import read_result
from reviewclf.pages.links import DATA_DOCS, GATE_REPORT, MLFLOW_RUN, PROMOTION, links_of

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey


class _ResultLink(BaseOperatorLink):
    """A link that the result of the task decides on; none where the task has no result, or one without that link."""

    # Airflow knows operators of plugins' links by their class; every @task is of this one.
    operators: ClassVar[list[Any]] = [_PythonDecoratedOperator]

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # type: ignore[override]
        """Address of the link; empty where there is none."""
        if not str(ti_key.dag_id).startswith("reviews_"):
            return ""
        path = links_of(_result(ti_key)).get(self.name)
        return f"{root_path()}{PREFIX}{path}" if path else ""


class RunLink(_ResultLink):
    """To MLflow."""

    name = MLFLOW_RUN


class DocsLink(_ResultLink):
    """To the data docs."""

    name = DATA_DOCS


class GateLink(_ResultLink):
    """To the gate's report."""

    name = GATE_REPORT


class PromotionLink(_ResultLink):
    """To the promotion page."""

    name = PROMOTION


def _result(ti_key: TaskInstanceKey) -> Any:
    """What the task handed on, or None."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        found = XComModel.get_many(
            key="return_value",
            run_id=ti_key.run_id,
            dag_ids=ti_key.dag_id,
            task_ids=ti_key.task_id,
            map_indexes=ti_key.map_index,
        )
        return read_result(session.execute(found.with_only_columns(XComModel.value)).scalar())


LINKS: list[BaseOperatorLink] = [RunLink(), DocsLink(), GateLink(), PromotionLink()]
