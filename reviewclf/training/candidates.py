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


class Range(_Model):
    """Numbers between two bounds, both included."""

    low: float
    high: float
    log: bool = Field(False, description="small values as often as large ones")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} has to be below high {self.high:g}, and above 0 with log")
        return self


class EncoderSearch(_Model):
    """Trials with varied settings, chosen by Optuna's tree-structured Parzen estimator by weighted F1 on validation.

    Attributes
    ----------
    space : dict
        Setting of the candidate to a list of values, or to ``{low, high, log}``.
    """

    trials: Annotated[int, Field(ge=2, le=200)] = 10
    space: Annotated[dict[str, Range | Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]

    def distributions(self) -> dict[str, Any]:
        """What Optuna draws from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            name: FloatDistribution(values.low, values.high, log=values.log)
            if isinstance(values, Range)
            else CategoricalDistribution(values)
            for name, values in self.space.items()
        }


class EncoderParams(_Model):
    """How one pretrained encoder is fine-tuned. The defaults are those of the notebook that the project grew from.

    Attributes
    ----------
    layer_decay : float
        Layer-wise learning-rate decay (Sun et al., How to Fine-Tune BERT for Text Classification?, 2019): each layer learns at
        this times the rate of the layer above it.
    rdrop : float
        Alpha of R-Drop (Liang et al., 2021): two passes under different dropout shall agree.
    """

    checkpoint: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)] = Field(
        description="name on the hub, such as cointegrated/rubert-tiny2, or of a folder in REVIEWCLF_ENCODERS"
    )
    loss: Literal["weighted_ce", "focal"] = "weighted_ce"
    gamma: NonNegativeFloat = Field(2.0, description="of the focal loss: how little rows count that are right already")
    alpha: bool = Field(True, description="of the focal loss: whether classes weigh by class_weight_power")
    class_weight_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0,
        description="classes weigh (rows / (classes * rows of the class)) ** power: 1 is `balanced`, 0 leaves them as they are",
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = Field(8, description="reviews a device works on at once")
    gradient_accumulation: PositiveInt = Field(2, description="batches that make one step")
    epochs: PositiveInt = 7
    weight_decay: NonNegativeFloat = 0.01
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="share of all steps until the full rate")
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    max_length: Annotated[int, Field(ge=4)] = Field(128, description="tokens after which a review is cut off")
    pooling: Literal["mean", "cls"] = Field("mean", description="average of the token states, or the first token's state")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="before the last layer; the encoder has its own")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="1: all layers learn at the same rate")
    rdrop: NonNegativeFloat = Field(0.0, description="0: off; else two passes a step, so it takes twice as long")
    patience: PositiveInt | None = Field(2, description="epochs without a better weighted F1 on validation; null: run them all")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field("auto", description="less memory, slower; auto: if big")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 or fp16 where GPU or CPU have it"
    )
    min_weight: NonNegativeFloat = Field(
        0.1, description="rows that weigh less, such as hints by stems, are left out where their class has 30 others"
    )
    needs_gpu: bool = Field(False, description="skipped on machines without a GPU, where it would take hours")
    save_steps: PositiveInt = Field(500, description="a checkpoint every so many steps, beside the one at each epoch's end")
    search: EncoderSearch | None = Field(None, description="several trials in place of one; takes as many times as long")

    @model_validator(mode="after")
    def _search_is_valid(self) -> Self:
        if self.search is not None:
            fixed = {"checkpoint", "search", "needs_gpu", "save_steps"}
            known = sorted(set(EncoderParams.model_fields) - fixed)
            unknown = sorted(set(self.search.space) - set(known))
            if unknown:
                raise ValueError(f"search: no setting {', '.join(unknown)} to vary; there are {', '.join(known)}")
        return self


class FrozenEncoderParams(_Model):
    """Settings of a linear classifier of encoder states."""

    checkpoint: Annotated[str, Field(min_length=1, description="name on the hub, or of a folder of REVIEWCLF_ENCODERS")]
    pooling: Literal["mean", "cls"] = Field("mean", description="average of the token states, or the first token's state")
    prefix: str = Field("", description="put before each text, as some checkpoints were trained: `query: `")
    max_length: PositiveInt = Field(128, description="tokens after which a text is cut off")
    C: Annotated[list[PositiveFloat], Field(min_length=1, max_length=20)] = Field(
        [300.0, 100.0, 30.0, 1000.0],
        description="inverse strengths of regularisation; the best on validation is taken, the earlier one on ties",
    )
    class_weight_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.5,
        description="classes weigh (rows / (classes * rows of the class)) ** power: 1 is `balanced`, 0 leaves them as they are",
    )
    standardise: bool = Field(False, description="each dimension of the states to mean 0 and deviation 1")
    stem_weight: NonNegativeFloat = Field(0.5, description="scale of the features from the taxonomy's keyword stems; 0: none")
    precision: Literal["auto", "fp32", "int8"] = Field("auto", description="of the served encoder; auto: int8 if it agrees")
    max_iter: PositiveInt = 2000


class CandidateBase(_Model):
    """What all kinds of candidates share."""

    name: Name
    kind: str
    description: str = ""


class LinearCandidate(CandidateBase):
    """A linear classifier."""

    kind: Literal["linear"]
    params: LinearParams


class EncoderCandidate(CandidateBase):
    """A pretrained encoder that is fine-tuned."""

    kind: Literal["encoder"]
    params: EncoderParams


class FrozenEncoderCandidate(CandidateBase):
    """A linear classifier of the states of a pretrained encoder."""

    kind: Literal["frozen-encoder"]
    params: FrozenEncoderParams


# One class a kind; further kinds join this union and the table below.
Candidate: TypeAlias = LinearCandidate | EncoderCandidate | FrozenEncoderCandidate
_KINDS: dict[str, type[Candidate]] = {
    "linear": LinearCandidate,
    "encoder": EncoderCandidate,
    "frozen-encoder": FrozenEncoderCandidate,
}


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
