"""The one settings object: ``REVIEWCLF_*`` variables, ``.env``, defaults.

A nested setting is written with two underscores: ``REVIEWCLF_GATE__MIN_WEIGHTED_F1=0.8``. MLflow, AWS and Airflow keep
their own standard variables; nothing here repeats them.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from reviewclf.errors import SettingsError

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _sample(name: str) -> str:
    return str(resources.files("reviewclf").joinpath("sample", name))


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IngestSettings(_Group):
    """How the source is read."""

    text_column: str = "text"
    id_column: str = "review_id"
    created_at_column: str = "created_at"
    source_name: str | None = Field(None, description="value of the column `source`; default: the file's name")
    table: str | None = Field(None, description="table or SELECT to read when the source is a database")
    watermark_column: str | None = Field(None, description="ever-growing column; a database is asked only for newer rows")
    encoding: str | None = Field(None, description="default: UTF-8 (with or without BOM), else cp1251")
    separator: str | None = Field(None, description="default: recognised among , ; tab |")
    chunk_rows: PositiveInt = 20_000


class QualitySettings(_Group):
    """Limits of the data checks."""

    max_text_length: PositiveInt = 10_000
    min_cyrillic_share: Share = Field(0.5, description="letters of a review that must be Cyrillic to count as Russian")
    min_russian_rows: Share = Field(0.8, description="share of rows that must be Russian")
    max_null_rows: Share = Field(0.2, description="share of rows without a text above which the batch stops")
    max_duplicate_rows: Share = Field(0.9, description="share of exact duplicates above which the batch stops")
    max_volume_ratio: PositiveFloat = Field(20.0, description="rows against the median of the last runs, either way")


class LLMSettings(_Group):
    """Who labels."""

    backend: Literal["recorded"] = "recorded"
    model: str = "Qwen/Qwen2-7B-Instruct"
    base_url: str | None = None
    shard_rows: PositiveInt = Field(5_000, description="reviews per mapped annotation task")


class VotesSettings(_Group):
    """How votes become labels."""

    method: Literal["posterior", "majority", "mean_confidence"] = "posterior"
    keyword_confidence: Share = Field(0.6, description="confidence of a vote of the keyword annotator")
    min_confidence: Share = Field(0.5, description="labels below it are not trained on")


class DatasetSettings(_Group):
    """How the training set is split."""

    validation_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.15
    near_duplicate_similarity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    hint_weight: Share = Field(0.1, description="weight factor of reviews that only keyword stems have labelled, beside others")
    min_class_rows: PositiveInt = Field(2, description="classes with fewer labelled reviews are left out, and said so")


class GateSettings(_Group):
    """Limits of the gate."""

    min_weighted_f1: Share = 0.74
    max_seconds_per_example: PositiveFloat = 5.0
    min_gold_rows: PositiveInt = 50


class Settings(BaseSettings):
    """Everything a run depends on. Paths may be relative to the working directory.

    Raises
    ------
    SettingsError
        From :func:`load_settings`, naming the variable, what it held and what is allowed.
    """

    model_config = SettingsConfigDict(
        env_prefix="REVIEWCLF_", env_nested_delimiter="__", env_file=".env", extra="ignore", frozen=True
    )

    home: Path = Path("./var")
    store: str | None = None
    source: str = Field(default_factory=lambda: _sample("reviews.csv"))
    gold: str | None = Field(default_factory=lambda: _sample("gold.csv"))
    votes: str | None = Field(default_factory=lambda: _sample("votes.csv"))
    taxonomy: Path = Field(default_factory=lambda: Path(str(resources.files("reviewclf").joinpath("taxonomy.yaml"))))
    candidates: Path = Field(default_factory=lambda: Path(str(resources.files("reviewclf").joinpath("candidates.yaml"))))
    encoders: Path | None = None
    seed: int = 42

    ingest: IngestSettings = IngestSettings()
    quality: QualitySettings = QualitySettings()
    llm: LLMSettings = LLMSettings()
    aggregation: VotesSettings = VotesSettings()
    dataset: DatasetSettings = DatasetSettings()
    gate: GateSettings = GateSettings()

    @field_validator("gold", "votes", "store", "encoders", mode="before")
    @classmethod
    def _empty_means_none(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value

    @property
    def store_uri(self) -> str:
        """Where tables and manifests live: a local path or ``s3://bucket/prefix``."""
        return self.store or str(self.home.expanduser().resolve() / "store")

    @property
    def tracking_uri(self) -> str:
        """MLflow's own ``MLFLOW_TRACKING_URI``, else the embedded SQLite file under ``home``."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home.expanduser().resolve() / 'mlflow' / 'mlflow.db'}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings once, with errors that name the environment variable.

    Parameters
    ----------
    **overrides
        Values that win over environment and ``.env``; for tests and the command line.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            variable = "REVIEWCLF_" + "__".join(str(part).upper() for part in item["loc"])
            lines.append(f"{variable}={item.get('input')!r}: {item['msg']}")
        raise SettingsError("Settings cannot be used:\n  " + "\n  ".join(lines)) from error
