"""Models in MLflow: logged from code, registered once, loaded by version or alias."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map

import reviewclf
from reviewclf.errors import RegistryError, RegistryUnavailableError
from reviewclf.registry import CHAMPION, REGISTERED_MODEL
from reviewclf.registry.deployment import Version, read_aliases
from reviewclf.registry.faults import if_found, may_pass
from reviewclf.registry.tracking import Tracker

# Without a schema of the input, which MLflow would enforce with messages of its own, on fewer types than the model takes: see
# :func:`reviewclf.registry.inputs.texts_of`.
SIGNATURE = ModelSignature(
    outputs=Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "confidence"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
    params=ParamSchema([ParamSpec("abstain", DataType.boolean, False)]),
)

_DESCRIPTION = "Product category of a Russian marketplace review. Production follows `champion`."

# What serving a model needs beside the package itself, which travels with the model.
_SERVING_PACKAGES = ("mlflow", "numpy", "pandas", "phonenumberslite", "psutil", "pydantic", "pyyaml")


@dataclass(frozen=True)
class LoadedModel:
    """A model on the serving path: raw texts in, label, confidence and probabilities out."""

    version: str
    pyfunc: Any

    def predict(self, texts: Sequence[str | None], *, abstain: bool = False) -> pd.DataFrame:
        """Columns ``label``, ``confidence`` and ``probabilities``, one row a text; `abstain` allows the label «не уверен»."""
        # Models of earlier versions know no parameters.
        params = {"abstain": True} if abstain else None
        frame: pd.DataFrame = self.pyfunc.predict(pd.DataFrame({"text": list(texts)}, dtype="object"), params)
        return frame


def log_model(
    tracker: Tracker, run_id: str, folder: Path, *, packages: Sequence[str], example: str, metadata: Mapping[str, Any]
) -> str:
    """Log the classifier saved in `folder` to a run and return the model's address.

    Parameters
    ----------
    folder : Path
        What :meth:`reviewclf.training.model.TextClassifier.save` wrote.
    packages : sequence of str
        What serving the classifier needs beyond what all of them do.
    example : str
        A review for the input example.
    metadata : mapping
        Goes into the model's MLmodel file.
    """
    with tracker.errors("store the model"):
        # A context of its own: the run stays as it is for whoever opened it.
        mlflow.start_run(run_id=run_id)
        try:
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"classifier": str(folder)},
                code_paths=[str(Path(reviewclf.__file__).parent)],
                signature=SIGNATURE,
                input_example=pd.DataFrame({"text": [example]}),
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in (*_SERVING_PACKAGES, *packages)],
                metadata=dict(metadata),
            )
        finally:
            mlflow.end_run("RUNNING")
    return str(info.model_uri)


def load_model(tracker: Tracker, uri: str, *, version: str) -> LoadedModel:
    """Load a logged or registered model.

    Raises
    ------
    RegistryError
        It is not there, or its files cannot be used; the message names its address.
    """
    try:
        with tracker.errors(f"hand out {uri}"):
            # Another tracker may have been made since.
            mlflow.set_tracking_uri(tracker.tracking_uri)
            return LoadedModel(version=version, pyfunc=mlflow.pyfunc.load_model(uri))
    except RegistryError:
        raise
    except Exception as error:  # whatever a broken model's own code raises
        if may_pass(error):
            raise RegistryUnavailableError(f"{uri}: the model cannot be loaded for now: {error!r:.300}") from error
        raise RegistryError(f"{uri}: the model cannot be loaded: {error}") from error


def load_alias(tracker: Tracker, alias: str = CHAMPION) -> LoadedModel:
    """The registered model that `alias` points to.

    Raises
    ------
    RegistryError
        No version carries the alias; the message says how to get one.
    """
    version = aliases(tracker).get(alias)
    if version is None:
        raise RegistryError(
            f"no version of {REGISTERED_MODEL!r} carries the alias {alias!r} at {tracker.tracking_uri}: "
            "run a retrain that passes the gate first (`make run`)"
        )
    return load_model(tracker, f"models:/{REGISTERED_MODEL}/{version}", version=version)


def register(tracker: Tracker, *, run_id: str, model_uri: str, tags: Mapping[str, str], description: str) -> str:
    """Version of the registered model for a run's model; created at the first call."""
    with tracker.errors("register the model"):
        try:
            tracker.client.create_registered_model(REGISTERED_MODEL, description=_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = next((str(known.version) for known in versions(tracker) if known.run_id == run_id), None)
        if version is None:
            version = str(mlflow.register_model(model_uri, REGISTERED_MODEL).version)
        tracker.client.update_model_version(REGISTERED_MODEL, version, description)
        for name, value in tags.items():
            tracker.client.set_model_version_tag(REGISTERED_MODEL, version, name, value)
    return version


def versions(tracker: Tracker) -> list[ModelVersion]:
    """All versions of the registered model, newest first; empty when nothing is registered yet."""
    with tracker.errors("list model versions"):
        found = list(tracker.client.search_model_versions(f"name = '{REGISTERED_MODEL}'", max_results=1000))
    return sorted(found, key=lambda version: -int(version.version))


def find_version(tracker: Tracker, number: str) -> Version | None:
    """One version with its tags as they are now; None where there is no such number."""
    with tracker.errors(f"show version {number}"):
        found = if_found(lambda: tracker.client.get_model_version(REGISTERED_MODEL, number)) if number.isdigit() else None
    return None if found is None else Version.of(found)


def dataset_of(tracker: Tracker, number: str) -> str:
    """Digest of the dataset that a version was trained on; empty where its tags do not say."""
    version = find_version(tracker, number)
    return "" if version is None else version.tag("dataset")


def aliases(tracker: Tracker) -> dict[str, str]:
    """Version by alias; empty when nothing is registered yet."""
    with tracker.errors("show its models"):
        return read_aliases(tracker.client)
