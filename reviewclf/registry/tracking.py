"""MLflow runs: one parent per retrain, one child per candidate. Every call can be repeated without leaving a double."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
from mlflow.utils.git_utils import get_git_commit

from reviewclf.registry import EXPERIMENT
from reviewclf.registry.faults import deleted_experiment, if_found, registry_errors

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

KEY_TAG = "reviewclf.key"
KIND_TAG = "reviewclf.kind"
CANDIDATE_TAG = "reviewclf.candidate"
PARENT_TAG = "mlflow.parentRunId"
RETIRED_TAG = "reviewclf.retired_at"
FAILURE_TAG = "reviewclf.failure"
# Before the name of a candidate, on the run of the retrain that goes on without it.
SKIPPED_TAG = "reviewclf.skipped."
# How the reason begins where the candidate could have been trained, and failed.
FAILED = "failed: "
OUTCOME_TAG = "reviewclf.outcome"

# Logs are for reading: a bar for two small files is not.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

_SQLITE = "sqlite:///"
_MAX_REASON = 2000
# MLflow refuses longer parameter values.
_MAX_PARAM = 6000


class Tracker:
    """Runs of the experiment ``review-classifier`` on one tracking server.

    Parameters
    ----------
    tracking_uri : str
        What MLflow takes: ``http://...``, ``sqlite:///...``.

    Raises
    ------
    RegistryError
        The server cannot be reached or refuses, or the experiment was deleted; the message names the server's address and,
        where there is one, the way out.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        if tracking_uri.startswith(_SQLITE):
            with self.errors("create its database"):
                _create_database(Path(tracking_uri.removeprefix(_SQLITE)))
        with self.errors("open the experiment"):
            mlflow.set_tracking_uri(tracking_uri)
            self.client = MlflowClient(tracking_uri)
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                experiment = self._create_experiment()
        self.experiment_id = str(experiment.experiment_id)
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise deleted_experiment(tracking_uri, self.experiment_id)
        self._created = experiment.creation_time

    @property
    def identity(self) -> str:
        """Changes when the tracking database is another one, so that results cached for the old one are not used."""
        return f"{self.experiment_id}:{self._created}"

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Turn MLflow's errors into a :class:`RegistryError` that says what was tried and where."""
        return registry_errors(self.tracking_uri, doing)

    # -- runs ------------------------------------------------------------------------------------------------------

    def find_runs(self, tags: Mapping[str, str], *, newest: int = 1000) -> list[Run]:
        """Runs that carry all of `tags`, newest first; deleted ones are left out."""
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        with self.errors("list runs"):
            found = list(
                self.client.search_runs(
                    [self.experiment_id],
                    filter_string=condition,
                    run_view_type=ViewType.ACTIVE_ONLY,
                    max_results=newest,
                    order_by=["attributes.start_time DESC"],
                )
            )
            # MLflow shows an experiment that was deleted as one without runs.
            experiment = None if found else self.client.get_experiment(self.experiment_id)
        if experiment is not None and experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise deleted_experiment(self.tracking_uri, self.experiment_id)
        return found

    def is_alive(self, run_id: str) -> bool:
        """Whether the run exists, was not deleted, finished, and still has its model."""
        with self.errors(f"show run {run_id}"):
            run = if_found(lambda: self.client.get_run(run_id))
        return run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE and _is_finished(run)

    def finished_run(self, key: str, kind: str) -> str | None:
        """Id of the finished run of a kind and key; None where there is none any more."""
        found = self.find_runs({KEY_TAG: key, KIND_TAG: kind}, newest=1)
        return str(found[0].info.run_id) if found and _is_finished(found[0]) else None

    def retrain(self, dataset: str) -> Run | None:
        """The parent run of the retrain on a dataset, by its digest; None where there is none, or it is gone."""
        return next(iter(self.find_runs({KEY_TAG: dataset, KIND_TAG: "retrain"}, newest=1)), None) if dataset else None

    def open_run(self, key: str, *, kind: str, name: str, description: str, tags: Mapping[str, str] | None = None) -> str:
        """Id of a new run; every other of its kind and key that no version was registered from is deleted.

        They are what killed attempts left, or a twin: the client repeats a request whose answer was lost with the server,
        which may have done it the first time. A run with a version is neither: the store has lost what it knew of it, and
        the version may be the champion.
        """
        with self.errors(f"create the run {name}"):
            run = self.client.create_run(
                self.experiment_id,
                run_name=name,
                tags={KEY_TAG: key, KIND_TAG: kind, "mlflow.note.content": description, **_origin_tags(), **(tags or {})},
            )
        run_id = str(run.info.run_id)
        for other in self.find_runs({KEY_TAG: key, KIND_TAG: kind}):
            if other.info.run_id != run_id:
                with self.errors("delete what a killed attempt left"):
                    if self.client.search_model_versions(f"run_id = '{other.info.run_id}'", max_results=1):
                        continue
                    if other.info.status != "FINISHED":
                        self._remove_models(other.info.run_id)
                    self.client.delete_run(other.info.run_id)
        return run_id

    @contextlib.contextmanager
    def candidate_run(self, key: str, *, parent: str, candidate: str, name: str, description: str) -> Iterator[str]:
        """Child run of a candidate; what a killed attempt with the same key left behind is deleted.

        The run ends FINISHED when the block does, FAILED when it raises.
        """
        tags = {CANDIDATE_TAG: candidate, PARENT_TAG: parent}
        run_id = self.open_run(key, kind="candidate", name=name, description=description, tags=tags)
        try:
            yield run_id
        except BaseException as error:
            # First the files: on a full disk there is no space for anything else before they are gone.
            with contextlib.suppress(MlflowException, OSError):
                self._remove_models(run_id)
            with contextlib.suppress(MlflowException):
                self.client.set_tag(run_id, FAILURE_TAG, f"{type(error).__name__}: {error}"[:_MAX_REASON])
            with contextlib.suppress(MlflowException):
                self.client.set_terminated(run_id, "FAILED")
            raise
        self.finish(run_id)

    def finish(self, run_id: str) -> None:
        """Mark a run FINISHED."""
        with self.errors("finish the run"):
            self.client.set_terminated(run_id, "FINISHED")

    def remove_model(self, model_id: str) -> None:
        """Remove a logged model and its files; nothing happens where it is gone."""
        model = if_found(lambda: self.client.get_logged_model(model_id))
        if model is None:
            return
        # Files that are gone already are what is wanted.
        with contextlib.suppress(FileNotFoundError):
            get_artifact_repository(model.artifact_location).delete_artifacts()  # type: ignore[no-untyped-call]
        self.client.delete_logged_model(model_id)

    def _remove_models(self, run_id: str) -> None:
        """Remove what a run that did not finish has logged of its model: attempts would fill the disk one after another."""
        for model in self.client.search_logged_models([self.experiment_id], filter_string=f"source_run_id = '{run_id}'"):
            self.remove_model(model.model_id)

    # -- what a run holds ------------------------------------------------------------------------------------------

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Log parameters, metrics and tags in one call; nested parameters become ``outer.inner``."""
        import pandas as pd

        now = int(time.time() * 1000)
        flat = pd.json_normalize(dict(params)).to_dict("records")[0] if params else {}
        with self.errors(f"log to run {run_id}"):
            self.client.log_batch(
                run_id,
                metrics=[Metric(name, float(value), now, step) for name, value in (metrics or {}).items()],
                params=[Param(str(name), str(value)[:_MAX_PARAM]) for name, value in flat.items()],
                tags=[RunTag(name, str(value)) for name, value in (tags or {}).items()],
            )

    def log_json(self, run_id: str, content: Any, path: str) -> None:
        """Store `content` as a JSON artifact."""
        self.log_text(run_id, json.dumps(content, ensure_ascii=False, indent=1, default=str), path)

    def log_text(self, run_id: str, content: str, path: str) -> None:
        """Store `content` as a text artifact."""
        with self.errors(f"store {path}"):
            self.client.log_text(run_id, content, path)

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Store a matplotlib figure as a picture."""
        with self.errors(f"store {path}"):
            self.client.log_figure(run_id, figure, path)

    def log_dataset(self, run_id: str, frame: pd.DataFrame, *, name: str, digest: str, source: str, context: str) -> None:
        """Log `frame` as a dataset input: its schema, profile, digest and where it lies, not its rows."""
        from mlflow.data.pandas_dataset import from_pandas

        with self.errors("log the dataset"):
            with warnings.catch_warnings():
                # It says twice that a local path is a local path.
                warnings.simplefilter("ignore", UserWarning)
                dataset = from_pandas(frame, source=source, targets="label", name=name, digest=digest[:36])
            tags = [InputTag("mlflow.data.context", context)]
            self.client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), tags)])

    @contextlib.contextmanager
    def hardware(self, run_id: str) -> Iterator[None]:
        """Log the load of processor, memory, disk, network and GPU every ten seconds while something runs (``system/...``)."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            run_id, resume_logging=True, tracking_uri=self.tracking_uri
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_environment(self, run_id: str) -> None:
        """Store the interpreter, the platform and every installed package with its version."""
        packages = sorted(
            {f"{item.metadata['Name']}=={item.version}" for item in importlib.metadata.distributions()}, key=str.lower
        )
        content = {"python": sys.version, "platform": platform.platform(), "packages": packages}
        self.log_json(run_id, content, "environment.json")

    def read_json(self, run_id: str, path: str) -> Any:
        """A JSON artifact of a run."""
        return json.loads(self.read_text(run_id, path))

    def read_text(self, run_id: str, path: str) -> str:
        """A text artifact of a run."""
        with self.errors(f"hand out {path}"), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")

    def artifact_address(self, run_id: str, path: str, *, ui: str | None = None) -> str:
        """Where people open an artifact: a page of MLflow's UI, or the file itself where no server is known.

        Parameters
        ----------
        ui : str, optional
            Address under which people reach MLflow; default: the tracking server's own, when it is one.
        """
        base = ui or (self.tracking_uri if self.tracking_uri.startswith("http") else None)
        if base is not None:
            return f"{base.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}/artifacts/{path}"
        with self.errors(f"say where {path} lies"):
            return f"{str(self.client.get_run(run_id).info.artifact_uri).rstrip('/')}/{path}"

    def _artifact_location(self) -> str | None:
        # Without a server MLflow would put artifacts below whatever the working directory is. A server decides itself.
        if not self.tracking_uri.startswith(_SQLITE):
            return None
        return (Path(self.tracking_uri.removeprefix(_SQLITE)).parent / "artifacts").resolve().as_uri()

    def _create_experiment(self) -> Any:
        try:
            self.client.create_experiment(
                EXPERIMENT,
                artifact_location=self._artifact_location(),
                # Opens in the UI's view for training models, not for language model applications.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        except MlflowException as error:
            # Another process may have created it since we looked.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self.client.get_experiment_by_name(EXPERIMENT)


def _is_finished(run: Run) -> bool:
    return run.info.status == "FINISHED" and RETIRED_TAG not in run.data.tags


def _create_database(path: Path) -> None:
    """Make MLflow's database whole before it gets its name: of half a one, left by a full disk, MLflow makes no whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        engine = create_sqlalchemy_engine(f"{_SQLITE}{made}")  # type: ignore[no-untyped-call]
        try:
            _initialize_tables(engine)  # type: ignore[no-untyped-call]
        finally:
            engine.dispose()
        try:
            path.hardlink_to(made)
        except FileExistsError:  # another process was quicker
            pass
        except OSError:  # a file system without links
            made.replace(path)


def git_commit(folder: Path | None = None) -> str | None:
    """Commit that this package's image was built from, or that of its checkout; None where neither is known."""
    noted = os.environ.get("SOURCE_COMMIT", "unknown")
    return noted if noted != "unknown" else get_git_commit(str(folder or Path(__file__).parent))


def _origin_tags() -> dict[str, str]:
    commit = git_commit()
    return {
        "mlflow.source.name": "reviewclf",
        "mlflow.source.type": "JOB",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }
