"""The one settings object: ``REVIEWCLF_*`` variables, ``.env``, defaults.

A nested setting is written with two underscores: ``REVIEWCLF_GATE__MIN_WEIGHTED_F1=0.8``. MLflow, AWS and Airflow keep
their own standard variables; nothing here repeats them.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from reviewclf.errors import SettingsError
from reviewclf.extensions import ANNOTATORS, extensions, is_ours

logger = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Similarity = Annotated[float, Field(gt=0.0, le=1.0)]


def _bundled(name: str) -> str:
    return str(resources.files("reviewclf").joinpath(name))


_SAMPLE = _bundled("sample/reviews.csv")


def _bundled_beside(validated: dict[str, Any], name: str) -> str | None:
    """What was written for the sample's thin classes stays with the sample: nobody's own data get it unasked."""
    return _bundled(name) if validated.get("source") == _SAMPLE else None


class _EmptyMeansNone(BaseModel):
    """In the environment nothing else can be written for None."""

    @field_validator("*", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any, info: ValidationInfo) -> Any:
        may_be_none = type(None) in get_args(cls.model_fields[str(info.field_name)].annotation)
        return None if may_be_none and isinstance(value, str) and not value.strip(" ") else value


class _Group(_EmptyMeansNone):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_annotator(name: str) -> str:
    if not is_ours(ANNOTATORS, name) and name not in (known := extensions(ANNOTATORS)):
        more = f"an installed package adds one as an entry point of the group {ANNOTATORS}"
        raise ValueError(f"there is no such annotator, only {', '.join(sorted(known))}; {more}")
    return name


class IngestSettings(_Group):
    """How the source is read."""

    text_column: str = Field("text", description="column that holds the reviews")
    id_column: str = Field("review_id", description="column with the source's ids; rows without one get a hash as id")
    created_at_column: str = Field("created_at", description="column with the time of the review")
    source_name: str | None = Field(None, description="the column `source`; default: the file's path below the source's folder")
    table: str | None = Field(None, description="table or SELECT to read when the source is a database")
    watermark_column: str | None = Field(None, description="ever-growing column; a database is asked only for newer rows")
    watermark_overlap: NonNegativeFloat | None = Field(
        None,
        description="how far below its watermark a database is read again for late rows: days where the column holds times "
        "(default 2), else so many numbers (default 1000)",
    )
    encoding: str | None = Field(None, description="default: recognised among UTF-8, UTF-16 with BOM and Russian code pages")
    separator: str | None = Field(None, description="default: recognised among comma, semicolon, tab and bar")
    quoting: Literal["auto", "standard", "backslash", "none"] = Field(
        "auto",
        description="what quotes mean in delimited text: `standard` (doubled within quoted fields), `backslash` (behind one), "
        "`none` (characters as any other); `auto`: recognised",
    )
    max_refused_share: Share = Field(
        0.05, description="share of a file's rows that cannot be read above which the night fails; one row alone never fails it"
    )
    chunk_rows: PositiveInt = Field(20_000, description="rows held in memory at once")

    @property
    def reading(self) -> dict[str, Any]:
        """The settings that decide how a file's rows are read, where they differ from the defaults."""
        others = {"table", "watermark_column", "watermark_overlap", "max_refused_share", "chunk_rows"}
        return self.model_dump(mode="json", exclude=others, exclude_defaults=True)


class QualitySettings(_Group):
    """Limits of the data checks."""

    max_text_length: PositiveInt = Field(10_000, description="characters above which a review goes to quarantine")
    min_cyrillic_share: Share = Field(0.5, description="letters of a review that must be Cyrillic to count as Russian")
    min_russian_rows: Share = Field(0.8, description="share of rows that must be Russian")
    max_null_rows: Share = Field(0.2, description="share of rows without a text above which the batch stops")
    max_duplicate_rows: Share = Field(0.9, description="share of exact duplicates above which the batch stops")
    max_volume_ratio: PositiveFloat = Field(
        20.0, description="a night's new rows against the median of nights before, a file's rows against what it held before"
    )


class LLMSettings(_Group):
    """Who labels."""

    backend: Annotated[str, AfterValidator(_known_annotator)] = Field(
        "recorded",
        description="`recorded`: votes are read from REVIEWCLF_VOTES; `openai`: an OpenAI-compatible server; `transformers`: "
        "a model in this process; or an annotator that an installed package brings",
    )
    model: str = Field("Qwen/Qwen2-7B-Instruct", description="name on the server or the hub, or a local folder")
    revision: str = Field("main", description="of the model; enters the votes, so another one asks again")
    base_url: str | None = Field(None, description="server for `openai`, as `http://127.0.0.1:8000/v1`; key: OPENAI_API_KEY")
    votes: Annotated[int, Field(ge=1, le=30)] = Field(3, description="per review; prompts take turns, then category orders")
    prompts: Path | None = Field(None, description="folder of prompt files; default: those of the package")
    answer: Literal["probabilities", "text"] = Field(
        "probabilities", description="read the category from the first token's probabilities, or from written text"
    )
    calibrate: bool = Field(True, description="divide out the model's prior towards categories, where probabilities are read")
    stated_confidence: Share = Field(0.7, description="confidence of a written answer that states none")
    structured_output: Literal["auto", "choice", "json_schema", "none"] = Field(
        "auto", description="how `openai` holds the server to the categories; `auto`: the strictest that it accepts"
    )
    thinking: Literal["auto", "off", "on"] = Field(
        "auto",
        description="whether the model may think before it answers; `auto`: where it does, it is told not to, and gets room "
        "where it cannot be told",
    )
    thinking_tokens: PositiveInt = Field(2048, description="room for thoughts, in tokens, beside that for the answer")
    concurrency: PositiveInt = Field(16, description="requests in flight per task for `openai`")
    timeout_seconds: PositiveFloat = Field(60.0, description="per request")
    max_retries: NonNegativeInt = Field(5, description="per request, with back-off, on 429, 5xx and time-outs")
    max_characters: Annotated[int, Field(ge=100)] = Field(2000, description="longer reviews are shown by their two ends")
    device: str = Field("auto", description="for `transformers`: auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="auto: bfloat16 on GPUs, else float32")
    quantization: Literal["none", "4bit"] = Field("none", description="`4bit` needs a GPU and the package bitsandbytes")
    batch_tokens: PositiveInt = Field(1024, description="review tokens per forward pass for `transformers`")
    max_reviews: PositiveInt | None = Field(None, description="budget of a run: reviews asked about")
    max_tokens: PositiveInt | None = Field(None, description="budget of a run: tokens in and out")
    max_cost: PositiveFloat | None = Field(None, description="budget of a run: money, by the two prices below")
    max_seconds: PositiveFloat | None = Field(None, description="budget of a run: seconds of labelling, all tasks together")
    price_in: NonNegativeFloat = Field(0.0, description="money per million tokens read")
    price_out: NonNegativeFloat = Field(0.0, description="money per million tokens written")
    shard_rows: PositiveInt = Field(5_000, description="reviews per mapped annotation task")

    @property
    def model_name(self) -> str:
        """Under which its answers are kept: ``model@revision``."""
        return f"{self.model}@{self.revision}"

    @property
    def room_for_thoughts(self) -> int:
        """Tokens that a model which is let think gets beside those of its answer."""
        return self.thinking_tokens if self.thinking == "on" else 0


class VotesSettings(_Group):
    """How votes become labels."""

    method: Literal["posterior", "majority", "mean_confidence", "dawid_skene"] = Field(
        "posterior", description="how votes become a label: see `aggregate_llm_votes`"
    )
    rare_class_boost: dict[str, PositiveFloat] = Field(
        {}, description='factors by category for `mean_confidence`, as JSON: `{"обувь": 1.2}`'
    )
    keyword_confidence: Share = Field(0.6, description="confidence of a vote of the keyword annotator")
    min_confidence: Share = Field(0.5, description="labels below it are not trained on")
    drop_confidence: Share = Field(0.2, description="labels below it are not shown to people either")


class ReviewSettings(_Group):
    """The queue of doubtful labels for people."""

    rows: PositiveInt = Field(200, description="reviews in the queue")
    wait: bool = Field(False, description="reviews_label waits, ten hours at most, until people have been through the queue")


class DatasetSettings(_Group):
    """How the training set is split."""

    validation_share: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(0.15, description="share of each class to validate on")
    near_duplicate_similarity: _Similarity = Field(
        0.7, description="Jaccard similarity of character n-grams from which two reviews count as near-duplicates"
    )
    hint_weight: Share = Field(0.1, description="weight factor of reviews that only keyword stems have labelled, beside others")
    min_class_rows: PositiveInt = Field(2, description="classes with fewer labelled reviews are left out, and said so")
    max_class_rows: PositiveInt | None = Field(
        20_000, description="training rows per class at most, the surest labels; empty: no limit, at the cost of memory"
    )
    label_errors: Literal["off", "downweight", "remove"] = Field(
        "downweight",
        description="what becomes of training rows whose label cleanlab suspects; validation and gold stay as they are",
    )
    label_error_weight: Share = Field(0.2, description="weight factor of suspected rows with `downweight`")


class AugmentationSettings(_Group):
    """Synthetic reviews for thin classes."""

    backend: Literal["auto", "none", "recorded", "openai", "transformers"] = Field(
        "auto", description="who writes: `auto` is REVIEWCLF_LLM__BACKEND, `none` writes nothing"
    )
    prompts: Path | None = Field(None, description="folder of prompt files for writing; default: those of the package")
    thin_share: Share = Field(0.5, description="classes with fewer training rows than this share of the median class are thin")
    amounts: Annotated[list[PositiveFloat], Field(min_length=1, max_length=10)] = Field(
        [0.25, 0.5, 1.0, 2.0], description="synthetic rows per real one that are tried, beside none at all"
    )
    max_rows: PositiveInt = Field(400, description="synthetic rows wanted per class at most")
    max_candidates: Annotated[float, Field(ge=1.0)] = Field(
        4.0, description="candidates written per row wanted, at most: what the filters refuse is written anew up to here"
    )
    batch_size: Annotated[int, Field(ge=1, le=50)] = Field(8, description="reviews asked for in one request")
    examples: Annotated[int, Field(ge=0, le=20)] = Field(4, description="real training reviews shown as examples of style")
    temperature: PositiveFloat = Field(0.9, description="of writing")
    tokens_per_review: PositiveInt = Field(160, description="room for one review in an answer")
    min_vote_share: Share = Field(0.6, description="votes for the class wanted, of all votes on a candidate, that it needs")
    min_characters: PositiveInt = Field(12, description="shorter candidates are refused")
    max_characters: PositiveInt = Field(700, description="longer candidates are refused")
    similarity: _Similarity = Field(
        0.5, description="Jaccard similarity from which a synthetic review repeats another, a real or a gold one"
    )
    max_same_opening: PositiveInt = Field(3, description="candidates that may begin with the same two words")
    min_diversity: Share = Field(
        0.8, description="distinct word pairs, and spread, of synthetic reviews against those of as many real ones"
    )
    weight: Share = Field(0.25, description="weight factor of synthetic rows in training")
    folds: Annotated[int, Field(ge=2, le=20)] = Field(5, description="parts of real rows on which amounts are compared in turn")
    min_certainty: Share = Field(0.8, description="share of bootstrap draws in which a used amount raises the class's recall")


class TrainingSettings(_Group):
    """Where training runs."""

    gpu: bool = Field(False, description="Airflow trains encoders on workers of the queue `gpu`")
    gpu_image: str | None = Field(
        None, description="on Kubernetes: image of the pods that train encoders with `GPU`; default: that of all tasks"
    )
    max_memory_gib: PositiveFloat | None = Field(None, description="main memory for one candidate's training; more is an error")


class GateSettings(_Group):
    """Limits of the gate. An empty limit switches its rule off."""

    min_weighted_f1: Share = Field(0.74, description="weighted F1 on gold that a candidate has to reach")
    max_seconds_per_example: PositiveFloat = Field(5.0, description="p95 of one review on the serving path has to be below")
    min_gold_rows: PositiveInt = Field(50, description="gold reviews that a verdict needs at least")
    margin: Share = Field(0.0, description="loss of weighted F1 against the champion that is put up with")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.9, description="how sure a paired bootstrap has to be that the loss is larger, for the candidate to be refused"
    )
    min_class_recall: Share | None = Field(0.5, description="recall on gold that every class has to reach; empty: no floor")
    min_class_recalls: dict[str, Share] = Field({}, description='floors by category instead, as JSON: `{"обувь": 0.8}`')
    min_class_rows: PositiveInt = Field(20, description="gold reviews that a class needs for its floor to count")
    max_ece: Share | None = Field(None, description="calibration error on gold that is allowed; empty: any")
    max_model_mib: PositiveFloat | None = Field(None, description="size of the model's files in MiB; empty: any")
    max_gold_age_days: PositiveFloat | None = Field(
        None, description="age of gold: its newest `created_at`, else when the file was written; empty: any"
    )
    rules: list[dict[str, Any]] = Field(
        [], description='more rules, as JSON: `[{"measure": "macro_f1", "comparison": ">=", "limit": 0.6}]`'
    )


class RegistrySettings(_Group):
    """What becomes of versions."""

    approval: bool = Field(False, description="a person has to agree, under Required Actions in Airflow, before a promotion")
    approval_hours: PositiveFloat = Field(12.0, description="how long that is waited for; no answer promotes nothing")
    keep_versions: PositiveInt = Field(20, description="newest versions that are never retired")
    keep_days: NonNegativeFloat = Field(90.0, description="days; no younger version is retired, and none with an alias")


class ScoringSettings(_Group):
    """What the champion scores, and who beside it."""

    shard_rows: PositiveInt = Field(5_000, description="reviews per mapped scoring task")
    shadow: bool = Field(False, description="the alias `challenger` scores beside the champion, for comparison")
    rescore_on_promotion: bool = Field(False, description="a new champion scores all of history, not only what is new")


class MaintenanceSettings(_Group):
    """What keeping house in the store leaves."""

    keep_days: Annotated[float, Field(ge=1.0)] = Field(
        30.0, description="the store can be read as it was at any time of the last so many days; what stages left then stays"
    )
    keep_snapshots: PositiveInt = Field(10, description="newest snapshots that stay whatever their age")
    keep_datasets: PositiveInt = Field(
        10, description="newest training sets that stay whatever their age; those of versions with an alias always do"
    )
    grace_hours: Annotated[float, Field(ge=1.0)] = Field(
        48.0, description="files that were written since are never removed: a task that runs may be about to name them"
    )


class MonitoringSettings(_Group):
    """When a look at production wakes somebody."""

    false_alarms_per_year: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        2.0, description="false alarms that 365 undisturbed nights may bring, all signals together"
    )
    min_rows: Annotated[int, Field(ge=20)] = Field(40, description="fewer reviews wait for those of the next nights")
    reference_nights: Annotated[int, Field(ge=3, le=365)] = Field(
        28, description="past nights that a night is compared with; with fewer than three, the champion's training data"
    )
    sample_rows: Annotated[int, Field(ge=100)] = Field(2_000, description="reviews of a night that are looked at, at most")


AlertKind = Literal["failure", "deadline", "gate", "budget", "drift", "promotion"]


class AlertSettings(_Group):
    """Whom Airflow tells what."""

    connections: tuple[str, ...] = Field((), description='of Airflow, for alerts, as JSON: `["slack_alerts", "mail_alerts"]`')
    kinds: tuple[AlertKind, ...] = Field(
        ("failure", "deadline", "gate", "budget", "drift", "promotion"), description="which alerts are sent; all are logged"
    )
    timeout_seconds: Annotated[float, Field(gt=0.0, le=20.0)] = Field(
        10.0, description="until a channel that does not answer is given up, and that is logged"
    )
    ingest_hours: PositiveFloat | None = Field(
        3.0, description="deadline: a run of reviews_ingest has to be done so long after it was queued; empty: none"
    )
    label_hours: PositiveFloat | None = Field(12.0, description="the same for reviews_label")
    retrain_hours: PositiveFloat | None = Field(12.0, description="the same for reviews_retrain")


class ServingSettings(_Group):
    """The server of online answers."""

    host: str = Field("127.0.0.1", description="address to listen on; `0.0.0.0` for all, then with keys and behind TLS")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="to listen on; 0: any free one, which the log names")
    poll_seconds: PositiveFloat = Field(2.0, description="between looks at the alias `champion`")
    workers: PositiveInt | None = Field(
        None,
        description="processes that answer, each with a copy of the model; default: the cores, at most 4; `1`: one copy, which "
        "uses all cores",
    )
    max_batch: PositiveInt = Field(16, description="texts that go through the model together; 8-bit encoders answer each alone")
    max_queue: PositiveInt = Field(
        1000,
        description="texts that may wait, shared out among the processes, each with room for two of the largest requests; "
        "beyond it requests get 503 and Retry-After",
    )
    max_texts: PositiveInt = Field(500, description="texts of one request; more get 422")
    max_characters: PositiveInt = Field(10_000, description="characters of one text; more get 422")
    max_body_bytes: PositiveInt = Field(4_194_304, description="bytes of one request; more get 413")
    drain_seconds: PositiveFloat = Field(10.0, description="on SIGTERM, what is being answered gets this long to finish")
    api_keys: SecretStr | None = Field(
        None, description="keys that may ask, comma-separated, plain or as `sha256:` and 64 hex digits; empty: everybody"
    )
    log_texts: bool = Field(False, description="write the reviews into the log as well")
    shadow_share: Share = Field(0.0, description="share of requests that `challenger` answers too, unseen, to be compared")
    shadow_log_seconds: PositiveFloat = Field(60.0, description="between lines in the log about how often the two disagree")

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_names(cls, given: Any) -> Any:
        """`THREADS` has counted processes from the start, and batches no longer wait (`MAX_WAIT_MS`)."""
        if isinstance(given, dict):
            given = {name: value for name, value in given.items() if name != "max_wait_ms"}
            if "threads" in given:
                given.setdefault("workers", given.pop("threads"))
        return given


class Settings(_EmptyMeansNone, BaseSettings):
    """Everything a run depends on. Paths may be relative to the working directory.

    Raises
    ------
    SettingsError
        From :func:`load_settings`, naming the variable, what it held and what is allowed.
    """

    model_config = SettingsConfigDict(
        env_prefix="REVIEWCLF_", env_nested_delimiter="__", env_file=".env", extra="ignore", frozen=True
    )

    home: Path = Field(Path("./var"), description="everything that runs leave behind: databases, logs, store, data docs")
    store: str | None = Field(None, description="tables and manifests: folder or `s3://bucket/prefix`; default: `$HOME/store`")
    source: str = Field(_SAMPLE, description="file, folder or glob (local, `s3://`), SQLAlchemy URL, `airflow://connection_id`")
    gold: str | None = Field(_bundled("sample/gold.csv"), description="reviews labelled by people; empty: none, nothing passes")
    votes: str | None = Field(_bundled("sample/votes.csv"), description="recorded votes; empty: none, only stems label")
    synthetic: str | None = Field(
        default_factory=lambda data: _bundled_beside(data, "sample/synthetic.csv"),
        description="recorded candidates for thin classes: `category`, `text`; default: the sample's, beside the sample alone",
    )
    synthetic_votes: str | None = Field(
        default_factory=lambda data: _bundled_beside(data, "sample/synthetic_votes.csv"),
        description="recorded votes on them; default likewise",
    )
    taxonomy: Path = Field(Path(_bundled("taxonomy.yaml")), description="categories and stems")
    candidates: Path = Field(Path(_bundled("candidates.yaml")), description="what a retrain trains")
    encoders: Path | None = Field(None, description="folder of local checkpoints that stand in for the hub, by name")
    seed: int = Field(42, description="of splits and training")
    mlflow_url: str | None = Field(
        None, description="address under which people reach MLflow, for links; default: MLFLOW_TRACKING_URI where that is one"
    )

    ingest: IngestSettings = IngestSettings()
    quality: QualitySettings = QualitySettings()
    llm: LLMSettings = LLMSettings()
    aggregation: VotesSettings = VotesSettings()
    review: ReviewSettings = ReviewSettings()
    dataset: DatasetSettings = DatasetSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    scoring: ScoringSettings = ScoringSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    alerts: AlertSettings = AlertSettings()
    registry: RegistrySettings = RegistrySettings()
    serving: ServingSettings = ServingSettings()

    @property
    def store_uri(self) -> str:
        """Where tables and manifests live: a local path or ``s3://bucket/prefix``."""
        return self.store or str(self.home.expanduser().resolve() / "store")

    @property
    def tracking_uri(self) -> str:
        """MLflow's own ``MLFLOW_TRACKING_URI``, else the embedded SQLite file under ``home``."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home.expanduser().resolve() / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_address(self) -> str | None:
        """Where people open MLflow, without a slash at the end; None where it is only a file on this machine."""
        address = self.mlflow_url or self.tracking_uri
        return address.rstrip("/") if address.startswith(("http://", "https://")) else None


def load_settings(**overrides: Any) -> Settings:
    """Read the settings once, with errors that name the environment variable.

    Parameters
    ----------
    **overrides
        Values that win over environment and ``.env``; for tests and the command line.
    """
    _warn_of_unknown()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            variable = "REVIEWCLF_" + "__".join(str(part).upper() for part in item["loc"])
            lines.append(f"{variable}={item.get('input')!r}: {item['msg']}")
        raise SettingsError("Settings cannot be used:\n  " + "\n  ".join(lines)) from error


def describe_settings() -> list[tuple[str, str, str]]:
    """Variable, default and meaning of every setting, in order; what the reference shows."""
    return list(_describe(Settings, Settings.model_config["env_prefix"]))


def _describe(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Group):
            yield from _describe(field.annotation, f"{variable}__")
            continue
        default = field.get_default(call_default_factory=True, validated_data={"source": _SAMPLE})
        # A list or an object is written into the environment as JSON.
        text = json.dumps(default, ensure_ascii=False) if isinstance(default, (tuple, list, dict)) else str(default)
        yield variable, text.replace(_bundled(""), "reviewclf") if default is not None else "", field.description or ""


def _warn_of_unknown() -> None:
    known = [variable for variable, _, _ in describe_settings()]
    for variable in sorted(os.environ):
        # Inside a group pydantic refuses what it does not know.
        if variable.startswith("REVIEWCLF_") and "__" not in variable and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            logger.warning("%s is no setting and changes nothing%s", variable, hint)
