"""What a server that follows the registry reads: where an alias points, what a version is, the files of its classifier."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from pydantic import BaseModel, ConfigDict

from reviewclf.errors import RegistryError
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.registry.faults import if_found, registry_error

_SQLITE = "sqlite:///"
# Metrics of a run that say how good its model is; their intervals end in `_low` and `_high`.
_FIGURES = ("gold/", "latency/")


class Version(BaseModel):
    """One version of the registered model.

    Attributes
    ----------
    version, run_id : str
        Its number and the run that made it.
    registered_at : datetime
        With time zone.
    tags : dict
        Gate verdict, candidate, dataset, who promoted it and why.
    description : str
        For people.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    run_id: str
    registered_at: datetime
    tags: dict[str, str] = {}
    description: str = ""

    @classmethod
    def of(cls, found: ModelVersion) -> Version:
        """The version that MLflow shows."""
        return cls(
            version=str(found.version),
            run_id=str(found.run_id or ""),
            registered_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
            tags={str(name): str(value) for name, value in (found.tags or {}).items()},
            description=found.description or "",
        )

    @property
    def identity(self) -> str:
        """Name that no other version has, also when the registry was emptied and its numbers begin anew."""
        return f"{self.version}-{self.run_id[:8]}-{int(self.registered_at.timestamp() * 1000):x}"

    def tag(self, name: str) -> str:
        """One of the tags that this package writes; empty where it is missing."""
        return self.tags.get(f"reviewclf.{name}", "")


class Deployments:
    """The registry as a server sees it; nothing is written there.

    Parameters
    ----------
    tracking_uri : str
        What MLflow takes: ``http://...``, ``sqlite:///...``.

    Raises
    ------
    RegistryError
        From every method: the registry cannot be reached or refuses.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        mlflow.set_tracking_uri(tracking_uri)

    def aliases(self) -> dict[str, str]:
        """Version by alias; empty when nothing is registered yet."""
        return dict(self._ask("show its models", read_aliases))

    def version(self, version: str) -> Version:
        """One version with its tags as they are now."""
        return Version.of(
            self._ask(f"show version {version}", lambda client: client.get_model_version(REGISTERED_MODEL, version))
        )

    def figures(self, version: Version) -> dict[str, float]:
        """What was measured about a version on gold and on the serving path; empty where its run is gone."""
        run = self._ask("show a run", lambda client: if_found(lambda: client.get_run(version.run_id)))
        metrics = {} if run is None else run.data.metrics
        return {name: float(value) for name, value in sorted(metrics.items()) if name.startswith(_FIGURES)}

    def fetch(self, version: Version, folder: Path) -> None:
        """Copy the files of a version's classifier into `folder`: what :func:`reviewclf.training.model.load_model` reads.

        Subfolders, such as a network for further training, are left out.
        """
        uri = f"models:/{REGISTERED_MODEL}/{version.version}"
        self._ask(f"hand out {uri}", lambda client: fetch_classifier(uri, folder))

    def _ask(self, doing: str, call: Callable[[MlflowClient], Any]) -> Any:
        path = Path(self.tracking_uri.removeprefix(_SQLITE))
        # MLflow would make an empty database here, which takes seconds and hides a wrong address.
        if self.tracking_uri.startswith(_SQLITE) and not path.exists():
            raise RegistryError(f"{path}: not there yet; `make run` creates it, or set MLFLOW_TRACKING_URI")
        try:
            return call(MlflowClient(self.tracking_uri))
        except RegistryError:
            raise
        except Exception as error:  # whatever the network, a database or an artifact store raise
            raise registry_error(error, self.tracking_uri, doing) from error


def read_aliases(client: MlflowClient) -> dict[str, str]:
    """Version by alias; empty when nothing is registered yet."""
    model = if_found(lambda: client.get_registered_model(REGISTERED_MODEL))
    return {} if model is None else {str(name): str(version) for name, version in model.aliases.items()}


def fetch_classifier(uri: str, folder: Path) -> None:
    """Copy the files of a logged model's classifier into `folder`.

    Parameters
    ----------
    uri : str
        ``models:/...``.
    folder : Path
        Empty.

    Raises
    ------
    RegistryError
        The model was not logged by this package.
    MlflowException
        It is not there, or MLflow does not answer.
    """
    files: Any = get_artifact_repository(uri)
    described = Path(files.download_artifacts("MLmodel", str(folder)))
    place = _classifier_place(described, uri)
    described.unlink()
    names = [Path(item.path).name for item in files.list_artifacts(place) if not item.is_dir]
    if not names:
        raise RegistryError(f"{uri}: holds no files below {place}; the version was not logged by this package")
    with tempfile.TemporaryDirectory(dir=folder) as below:  # where MLflow makes the model's own folders
        for name in names:
            Path(files.download_artifacts(f"{place}/{name}", below)).replace(folder / name)


def _classifier_place(described: Path, uri: str) -> str:
    """Where the classifier lies below the model, read from its ``MLmodel`` file."""
    try:
        content = yaml.safe_load(described.read_text(encoding="utf-8"))
        place = str(content["flavors"]["python_function"]["artifacts"]["classifier"]["path"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RegistryError(f"{uri}: its MLmodel names no artifact `classifier`; it was not logged by this package") from error
    if Path(place).is_absolute() or ".." in Path(place).parts:
        raise RegistryError(f"{uri}: its MLmodel names {place!r}, which lies outside the model; it is not loaded")
    return place
