"""The candidates file: which classifiers a retrain trains and compares, and with which parameters."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from reviewclf.errors import TrainingError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=60)]

# A search is chosen on a small validation split: more than this many settings would mostly pick noise, and take long.
_MAX_SETTINGS = 64


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ngrams(_Model):
    """One block of TF-IDF features; the names are those of scikit-learn's TfidfVectorizer."""

    ngram_range: tuple[PositiveInt, PositiveInt]
    max_features: PositiveInt | None = Field(None, description="keep the most frequent ones only")
    min_df: PositiveInt = Field(1, description="training reviews that must hold an n-gram")
    sublinear_tf: bool = Field(False, description="1 + log(count) in place of the count")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ngram_range[0] > self.ngram_range[1]:
            raise ValueError(f"ngram_range must go from short to long, found {list(self.ngram_range)}")
        return self


class LinearSettings(_Model):
    """Settings of one linear classifier over TF-IDF and keyword-stem features."""

    estimator: Literal["logistic_regression", "linear_svc"]
    C: PositiveFloat = Field(1.0, description="inverse strength of regularisation")
    class_weight_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0,
        description="classes weigh (rows / (classes * rows of the class)) ** power: 1 is `balanced`, 0 leaves them as they are",
    )
    word: Ngrams | None = Field(None, description="n-grams of words")
    char: Ngrams | None = Field(None, description="n-grams of characters inside word boundaries")
    stem_weight: NonNegativeFloat = Field(0.0, description="scale of the features from the taxonomy's keyword stems; 0: none")
    digits_as_zero: bool = Field(False, description="read every digit as 0, so that «92-74-98» and «88-70-96» are one pattern")
    calibration: Literal["none", "sigmoid"] = Field(
        "sigmoid", description="sigmoid: probabilities by Platt scaling on out-of-fold scores"
    )
    calibration_folds: Annotated[int, Field(ge=2, le=20)] = 5
    max_iter: PositiveInt = 2000

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.word is None and self.char is None and self.stem_weight == 0:
            raise ValueError("no features: give `word`, `char` or a `stem_weight` above 0")
        if self.estimator == "linear_svc" and self.calibration == "none":
            raise ValueError("linear_svc has no probabilities of its own; `calibration` must be sigmoid")
        return self


class LinearParams(LinearSettings):
    """Settings, and optionally lists of values to choose among on the validation split.

    Attributes
    ----------
    search : dict
        Values to try, by name of a setting: ``{C: [1, 3, 10]}``. All combinations are tried in the order written; the best
        weighted F1 on validation wins, the earlier one on ties. Without validation rows the first combination is taken.
    """

    search: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _search_is_valid(self) -> Self:
        unknown = sorted(set(self.search) - set(LinearSettings.model_fields))
        if unknown:
            raise ValueError(f"search: no setting {', '.join(unknown)}; there are {', '.join(LinearSettings.model_fields)}")
        self.settings()
        return self

    def settings(self) -> list[LinearSettings]:
        """All combinations to try, in order; one when there is nothing to search."""
        fixed = self.model_dump(exclude={"search"})
        combinations = list(itertools.product(*self.search.values()))
        if len(combinations) > _MAX_SETTINGS:
            raise ValueError(
                f"search: {len(combinations)} combinations; at most {_MAX_SETTINGS} can be told apart on validation"
            )
        return [
            LinearSettings.model_validate({**fixed, **dict(zip(self.search, values, strict=True))}) for values in combinations
        ]


class CandidateBase(_Model):
    """What all kinds of candidates share."""

    name: Name
    kind: str
    description: str = ""


class LinearCandidate(CandidateBase):
    """A linear classifier."""

    kind: Literal["linear"]
    params: LinearParams


# One class a kind; further kinds join this union and the table below.
Candidate: TypeAlias = LinearCandidate
_KINDS: dict[str, type[Candidate]] = {"linear": LinearCandidate}


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
    entries = _read_entries(path)
    candidates: list[Candidate] = []
    for position, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise TrainingError(
                f"{path}: candidate {position}: expected a mapping with name, kind and params, found {entry!r:.80}"
            )
        title = f"{path}: candidate {position} ({entry.get('name', 'without a name')})"
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise TrainingError(f"{title}: kind: expected one of {', '.join(_KINDS)}, found {kind!r}")
        try:
            candidate = _KINDS[kind].model_validate(entry)
        except ValidationError as error:
            raise TrainingError(f"{title}: {_describe(error)}") from error
        if candidate.name in {known.name for known in candidates}:
            raise TrainingError(f"{title}: name: another candidate is called {candidate.name!r} already; names must differ")
        candidates.append(candidate)
    return candidates


def parse_candidate(entry: dict[str, Any]) -> Candidate:
    """Rebuild a candidate from its dump, such as a manifest holds."""
    return _KINDS[entry["kind"]].model_validate(entry)


def _read_entries(path: str | Path) -> list[Any]:
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
