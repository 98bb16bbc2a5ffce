"""The candidates file: which classifiers a retrain trains and compares, and with which parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reviewclf.errors import TrainingError
from reviewclf.training.kinds import load_kind
from reviewclf.training.model import TextClassifier
from reviewclf.training.rows import TrainingJob

ClassWeightPower = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="classes weigh (rows / (classes * rows of the class)) ** power: 1 is `balanced`, 0 leaves them as they are",
    ),
]


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

    def check_available(self, encoders: Path | None) -> None:
        """Whether it can be trained here.

        Raises
        ------
        EncoderUnavailableError
            Its pretrained encoder, or the GPU that it asks for, is missing; the message says how to get it.
        """


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
    for position, entry in enumerate(_read_entries(path), start=1):
        if not isinstance(entry, dict):
            raise TrainingError(
                f"{path}: candidate {position}: expected a mapping with name, kind and params, found {entry!r:.80}"
            )
        title = f"{path}: candidate {position} ({entry.get('name', 'without a name')})"
        try:
            candidate = parse_candidate(entry)
        except ValidationError as error:
            raise TrainingError(f"{title}: {_describe(error)}") from error
        except TrainingError as error:
            raise TrainingError(f"{title}: {error}") from error
        if candidate.name in {known.name for known in candidates}:
            raise TrainingError(f"{title}: name: another candidate is called {candidate.name!r} already; names must differ")
        candidates.append(candidate)
    return candidates


def parse_candidate(entry: dict[str, Any]) -> Candidate:
    """A candidate from its entry in the file, or from its dump in a manifest."""
    candidate: Candidate = load_kind(entry.get("kind")).model_validate(entry)
    return candidate


def _read_entries(path: str | Path) -> Sequence[Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror}); check REVIEWCLF_CANDIDATES") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: is no UTF-8 YAML file: {error}") from error
    entries = content.get("candidates") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise TrainingError(f"{path}: expected the key `candidates` with a list of at least one candidate")
    unknown = sorted(map(str, set(content) - {"candidates"}))
    if unknown:
        raise TrainingError(f"{path}: unknown key {', '.join(unknown)}; the file has the one key `candidates`")
    return entries


def _describe(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'entry'}: {item['msg']} (found {item.get('input')!r:.80})"
        for item in error.errors()
    )
