"""The candidates file: which classifiers a retrain trains and compares, and with which parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reviewclf.errors import TrainingError
from reviewclf.training.kinds import load_kind
from reviewclf.training.model import TextClassifier
from reviewclf.training.rows import TrainingJob, TrainingRows
from reviewclf.yaml_files import describe, read_yaml

# Classes weigh (rows / (classes * rows of the class)) ** power: 1 is scikit-learn's `balanced`, 0 leaves them as they are.
ClassWeightPower = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """Part of a candidates file: unknown names are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(Strict, ABC):
    """One entry of the candidates file.

    A subclass is a kind of candidates. It declares the field ``params``, trains, and names the class of what it trains. It is
    registered under the name of the kind as an entry point of the group ``reviewclf.candidates``.

    Attributes
    ----------
    fine_tunes : bool
        Whether it is trained by the tasks for fine-tuning, which run where there is a GPU.
    """

    fine_tunes: ClassVar[bool] = False

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=60)]
    kind: str
    description: str = ""
    params: Any

    @property
    def title(self) -> str:
        """What messages begin with."""
        return f"candidate {self.name}"

    @abstractmethod
    def train(self, job: TrainingJob) -> TextClassifier:
        """Train on the rows of `job`.

        Raises
        ------
        TrainingError
            The rows cannot be trained on, or the settings do not work out; the retrain goes on with the other candidates.
        """

    @classmethod
    @abstractmethod
    def classifier(cls) -> type[TextClassifier]:
        """The class that reads what :meth:`train` returned and was saved."""

    def common(self, job: TrainingJob, rows: TrainingRows) -> dict[str, Any]:
        """The keywords of a classifier's constructor that all kinds share."""
        return {"classes": job.classes, "seen": rows.seen, "prior": rows.prior, "candidate": self.model_dump(mode="json")}

    def check_available(self, encoders: Path | None) -> None:
        """Whether it can be trained here.

        Raises
        ------
        EncoderUnavailableError
            Its pretrained encoder, or the GPU that it asks for, is missing; the message says how to get it.
        """


class _CandidatesFile(Strict):
    candidates: Annotated[list[Any], Field(min_length=1)]


def load_candidates(path: str | Path) -> list[Candidate]:
    """Read a candidates file.

    Returns
    -------
    list of Candidate
        In the order of the file, at least one.

    Raises
    ------
    TrainingError
        The file is missing or no YAML, an entry breaks its contract or two have the same name; the message names file, entry
        and field.
    """
    candidates: list[Candidate] = []
    file = read_yaml(path, _CandidatesFile, setting="REVIEWCLF_CANDIDATES", error_type=TrainingError)
    for position, entry in enumerate(file.candidates, start=1):
        if not isinstance(entry, dict):
            raise TrainingError(
                f"{path}: candidate {position}: expected a mapping with name, kind and params, found {entry!r:.80}"
            )
        title = f"{path}: candidate {position} ({entry.get('name', 'without a name')})"
        try:
            candidate = parse_candidate(entry)
        except (ValidationError, TrainingError) as error:
            raise TrainingError(f"{title}: {describe(error) if isinstance(error, ValidationError) else error}") from error
        if candidate.name in {known.name for known in candidates}:
            raise TrainingError(f"{title}: name: another candidate is called {candidate.name!r} already; names must differ")
        candidates.append(candidate)
    return candidates


def parse_candidate(entry: dict[str, Any]) -> Candidate:
    """A candidate from its entry in the file, or from its dump in a manifest."""
    candidate: Candidate = load_kind(entry.get("kind")).model_validate(entry)
    return candidate
