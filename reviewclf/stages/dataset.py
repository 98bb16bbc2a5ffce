"""The training set: rows by split, with the synthetic ones that help."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic_core import to_jsonable_python

from reviewclf import tables
from reviewclf.augmentation.amounts import Choice, cheapest, choices_of, choose_amounts, curve_table, in_order
from reviewclf.augmentation.generate import JOURNAL
from reviewclf.augmentation.generators import Written
from reviewclf.data import dataset as rules
from reviewclf.data.card import dataset_card, diff_datasets
from reviewclf.data.gold import load_gold
from reviewclf.errors import (
    DatasetError,
    TrainingError,
)
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.llm.journal import forget_journals
from reviewclf.manifest import Manifest, digest_of
from reviewclf.registry.runs import retrain_run, tracker_of
from reviewclf.settings import AugmentationSettings, DatasetSettings, Settings
from reviewclf.store import Change, Snapshot, StageResult, Store
from reviewclf.tables import HUMAN
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash
from reviewclf.training.candidates import Candidate, load_candidates, parse_candidate

logger = logging.getLogger(__name__)

# Of the stage `dataset`.
_VERSION = 3
# More rows of a class are read than may train, as near-duplicates and such that validate do not count.
_SPARE = 1.25
_LABELLED = pa.schema(
    [
        *(tables.CLEAN_SCHEMA.field(name) for name in ("review_id", "text_clean", "source")),
        *tables.LABEL_SCHEMA,
        pa.field("hint", pa.bool_()),
    ]
)


class DatasetInputs:
    """What a training set is made of: clean reviews and their labels, now or as of a version of the store, and gold."""

    def __init__(self, settings: Settings, version: int | None = None) -> None:
        self.settings = settings
        self.store = Store(settings.store_uri)
        self.taxonomy = Taxonomy.load(settings.taxonomy)
        self.snapshot = self.store.snapshot(version)
        self.gold = load_gold(settings, self.taxonomy)

    def digests(self) -> dict[str, Any]:
        """All that a split depends on, as inputs of a stage.

        Raises
        ------
        DatasetError
            Nothing is labelled yet.
        """
        if not self.snapshot.keys("labels"):
            raise DatasetError(f"{self.store.uri}: no labels yet; run the DAGs reviews_ingest and reviews_label first")
        return {
            "tables": self.snapshot.identity("clean", "labels"),
            "gold": None if self.gold is None else self.gold.digest,
            "taxonomy": digest_of(self.taxonomy),
            "options": self.settings.dataset,
            "min_confidence": self.settings.aggregation.min_confidence,
            "seed": self.settings.seed,
        }

    def labelled(self) -> tuple[pd.DataFrame, dict[str, int]]:
        """The clean reviews that have a label of the taxonomy, and what was counted on the way.

        Where classes are capped (``REVIEWCLF_DATASET__MAX_CLASS_ROWS``), only so many of each are read as can be needed, the
        surest first: what a dataset costs does not grow with the reviews of all years.

        Returns
        -------
        DataFrame
            Columns of the tables clean and labels, and ``hint``: only keyword stems speak for the label.
        dict of str to int
            ``clean`` and ``labelled`` rows of the store, and how many of these are ``beyond_cap`` and were not read.
        """
        import polars as pl

        clean = self.store.scan(self.snapshot.keys("clean"), tables.CLEAN_SCHEMA)
        labels = self.store.scan(self.snapshot.keys("labels"), tables.LABEL_SCHEMA)
        labels = labels.filter(pl.col("label").is_in(self.taxonomy.names)).with_columns(hint=pl.col("method") == KEYWORDS)
        known = clean.select("review_id", "text_hash", "source").join(labels, on="text_hash")
        n_clean, n_labelled = (int(query.select(pl.len()).collect(engine="streaming").item()) for query in (clean, known))
        options = self.settings.dataset
        if options.max_class_rows is not None:
            most = ceil(_SPARE * options.max_class_rows / (1 - options.validation_share))
            order = ["label", pl.col("origin") != HUMAN, "hint", -pl.col("confidence"), "text_hash"]
            known = known.sort(order).group_by("label", maintain_order=True).head(most)
        texts = clean.select("review_id", "text_hash", "text_clean")
        rows = self.store.collect(known.join(texts, on=["review_id", "text_hash"]), _LABELLED)
        frame = rows.to_pandas().sort_values(["text_hash", "review_id"], kind="stable", ignore_index=True)
        return frame, {"clean": n_clean, "labelled": n_labelled, "beyond_cap": n_labelled - len(frame)}

    def split(self, labelled: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows by split, and those left out; see :func:`reviewclf.data.dataset.build_dataset`."""
        return rules.build_dataset(
            labelled,
            None if self.gold is None else self.gold.frame,
            self.settings.dataset,
            min_confidence=self.settings.aggregation.min_confidence,
            seed=self.settings.seed,
            synthetic=self.settings.augmentation,
            stems=self.taxonomy.keyword_stems,
        )


def build_dataset(settings: Settings, synthesized: Sequence[Manifest] = ()) -> Manifest:
    """Split labelled reviews into train and validation, gold into test, with as many synthetic rows as help.

    The retrain's MLflow run is opened for it.

    Parameters
    ----------
    synthesized : sequence of Manifest
        From :func:`reviewclf.stages.synthesize.synthesize`, one a class; none where nothing was written.

    Returns
    -------
    Manifest
        The dataset card. ``outputs``: ``dataset`` and ``left_out`` (with reasons); ``counts``: rows by split and origin, and
        by reason left out; ``details``: ``card`` (:func:`reviewclf.data.card.dataset_card`) and ``augmentation`` (how many
        synthetic rows each class gets, and the curve that says so); ``not_written`` (for which thin classes nothing could be
        written, and why).

    Raises
    ------
    DatasetError
        Nothing is labelled yet, or fewer than two classes are left.
    LeakError
        The splits share texts.
    """
    given = DatasetInputs(settings)
    store = given.store
    not_written = {str(m.details["category"]): str(m.details["skipped"]) for m in synthesized if "skipped" in m.details}
    synthesized = [manifest for manifest in synthesized if "skipped" not in manifest.details]
    inputs, work = _recipe(given, synthesized, load_candidates(settings.candidates))
    manifest = store.run_stage("dataset", _VERSION, inputs, work)
    _publish(store, synthesized)
    chosen = choices_of(manifest)
    if chosen:
        logger.info("synthetic rows that help:\n%s", curve_table(chosen))
    tracker = tracker_of(settings)
    run_id = retrain_run(tracker, manifest, store)
    if not_written:
        logger.error("goes on without synthetic reviews of %s", ", ".join(not_written))
        tracker.log(run_id, tags={"reviewclf.not_written": "; ".join(f"{name}: {why}" for name, why in not_written.items())})
    return manifest.model_copy(update={"details": {**manifest.details, "not_written": not_written}})


def _recipe(
    given: DatasetInputs, synthesized: Sequence[Manifest], candidates: Sequence[Candidate]
) -> tuple[dict[str, Any], Callable[[], StageResult]]:
    """All that a dataset depends on, and the work that makes it."""
    settings, store, gold = given.settings, given.store, given.gold
    synthesized = sorted(synthesized, key=lambda manifest: str(manifest.details["category"]))
    inputs = {
        **given.digests(),
        "synthetic": [key for manifest in synthesized for key in manifest.keys("kept")],
        "augmentation": settings.augmentation,
        # Fixed here for the whole retrain: the file may change while its candidates are trained.
        "candidates": [candidate.model_dump(mode="json") for candidate in candidates],
    }

    def work() -> StageResult:
        labelled, counted = given.labelled()
        made = _synthetic_rows(store, synthesized)
        dataset, left_out = given.split(pd.concat([labelled, made], ignore_index=True))
        choices: list[Choice] = []
        if (dataset["origin"] == "synthetic").any():
            choices = _choose(given, dataset, labelled, made, cheapest(candidates))
            dataset, left_out = _with_chosen(dataset, left_out, choices, settings.seed)
        by_class = dataset.groupby(["label", "split"]).size().unstack(fill_value=0)
        placed = labelled[labelled["review_id"].isin(set(dataset.loc[dataset["split"] != "test", "review_id"]))]
        reports: list[Any] = [manifest.details["report"] for manifest in synthesized]
        return StageResult(
            outputs={
                "dataset": store.put_table(as_table(dataset, tables.DATASET_SCHEMA)),
                "left_out": store.put_table(as_table(left_out, tables.LEFT_OUT_SCHEMA)),
            },
            counts={
                **counted,
                "unlabelled": counted["clean"] - counted["labelled"],
                "synthetic": len(made),
                **{f"{split}_rows": count for split, count in sorted(_counts(dataset["split"]).items())},
                **{f"left_out_{reason}": count for reason, count in sorted(_counts(left_out["reason"]).items())},
            },
            details={
                "rows_by_class": by_class.to_dict("index"),
                "rows_by_origin": dict(_counts(dataset["origin"])),
                "leak_check": "passed",
                "gold": None if gold is None else {"file": Path(gold.uri).name, "rows": len(gold.frame)},
                "augmentation": [choice.model_dump(mode="json") for choice in choices],
                "snapshot": given.snapshot.version,
                "card": dataset_card(dataset, left_out, sources=_counts(placed["source"]), filters=reports),
            },
        )

    return inputs, work


def rebuild(settings: Settings, name: str) -> Manifest:
    """Make a dataset again from the versions of the tables that it was made from, and hold the two against each other.

    Where retention has removed its rows, they are there again.

    Parameters
    ----------
    name : str
        As for :func:`find_dataset`.

    Raises
    ------
    DatasetError
        What it was made from is not there any more (versions of tables, the gold file, the taxonomy), or what comes out is
        another dataset.
    """
    card = find_dataset(settings, name)
    said: Any = card.inputs
    version = card.details.get("snapshot")
    if not isinstance(version, int):
        raise DatasetError(f"dataset {card.digest}: was made by an earlier version, which did not note what it read")
    options: dict[str, Any] = {
        "dataset": DatasetSettings.model_validate(said["options"]),
        "augmentation": AugmentationSettings.model_validate(said["augmentation"]),
        "aggregation": settings.aggregation.model_copy(update={"min_confidence": said["min_confidence"]}),
        "seed": said["seed"],
    }
    given = DatasetInputs(settings.model_copy(update=options), version)
    made = [manifest for _, manifest in given.store.manifests("synthesize")]
    written = [manifest for manifest in made if (kept := manifest.keys("kept")) and set(kept) <= set(said["synthetic"])]
    inputs, work = _recipe(given, written, [parse_candidate(entry) for entry in said["candidates"]])
    plain = to_jsonable_python(inputs, fallback=str)
    if changed := sorted(key for key in said if plain.get(key) != said[key]):
        raise DatasetError(f"dataset {card.digest}: cannot be made again, as these are others than then: {', '.join(changed)}")
    again = work()
    if again.outputs != card.outputs:
        raise DatasetError(f"dataset {card.digest}: other rows came out of the same inputs; was it made by another version?")
    return card


def list_datasets(settings: Settings) -> list[tuple[datetime, Manifest]]:
    """The datasets of the store and when each was made, the newest first."""
    return Store(settings.store_uri).manifests("dataset")


def find_dataset(settings: Settings, name: str) -> Manifest:
    """The dataset that `name` stands for: a digest, the beginning of one, ``newest`` or ``previous``.

    Raises
    ------
    DatasetError
        None is called so, or several are.
    """
    known = [manifest for _, manifest in list_datasets(settings)]
    places = {"newest": 0, "previous": 1}
    found = known[places[name] :][:1] if name in places else [item for item in known if item.digest.startswith(name)]
    if len(found) != 1:
        names = ", ".join(manifest.digest for manifest in (found or known)[:10]) or "none"
        raise DatasetError(
            f"{settings.store_uri}: {'no' if not found else 'more than one'} dataset is called {name!r}; there are {names}"
        )
    return found[0]


def diff(settings: Settings, old: str, new: str) -> list[str]:
    """How dataset `new` differs from `old`, in lines of text; see :func:`reviewclf.data.card.diff_datasets`."""
    store = Store(settings.store_uri)
    pair = find_dataset(settings, old), find_dataset(settings, new)
    rows = [store.read(manifest, "dataset").to_pandas() for manifest in pair]
    return diff_datasets(*pair, *rows)


def _synthetic_rows(store: Store, synthesized: Sequence[Manifest]) -> pd.DataFrame:
    keys = [key for manifest in synthesized for key in manifest.keys("kept")]
    kept = store.read_table(keys, schema=tables.SYNTHETIC_SCHEMA).to_pandas()
    columns = ["review_id", "text_clean", "text_hash", "label", "examples"]
    same: dict[str, Any] = {"origin": "synthetic", "method": "synthetic", "hint": False, "source": "synthetic"}
    rows: pd.DataFrame = kept[columns].assign(confidence=kept["share"], **same)
    return rows


def _choose(
    given: DatasetInputs, dataset: pd.DataFrame, labelled: pd.DataFrame, made: pd.DataFrame, candidate: Candidate
) -> list[Choice]:
    """How many synthetic rows each thin class gets; none at all where that cannot be tried."""
    hints = set(labelled.loc[labelled["hint"], "review_id"])
    rows = dataset[dataset["split"] != "test"]
    rows = rows.assign(text_hash=[text_hash(text) for text in rows["text_clean"]], hint=rows["review_id"].isin(hints))
    examples = made[["review_id", "examples"]].drop_duplicates("review_id", keep="last")
    synthetic = rows[rows["origin"] == "synthetic"].merge(examples, on="review_id", validate="m:1")
    try:
        return choose_amounts(
            rows[rows["origin"] != "synthetic"],
            synthetic,
            candidate,
            classes=given.taxonomy.names,
            stems=given.taxonomy.keyword_stems,
            options=given.settings.augmentation,
            seed=given.settings.seed,
        )
    except TrainingError as error:
        logger.error("goes on without synthetic reviews: whether they help cannot be tried: %s", error)  # noqa: TRY400
        return []


def _with_chosen(
    dataset: pd.DataFrame, left_out: pd.DataFrame, choices: Sequence[Choice], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The dataset with as many synthetic rows as were chosen; the others are left out, and said so."""
    synthetic = dataset[dataset["origin"] == "synthetic"]
    synthetic = synthetic.assign(text_hash=[text_hash(text) for text in synthetic["text_clean"]])
    used: set[str] = set()
    for choice in choices:
        used |= set(in_order(synthetic[synthetic["label"] == choice.category], seed)["review_id"].head(choice.rows))
    unused = (dataset["origin"] == "synthetic") & ~dataset["review_id"].isin(used)
    more = dataset[unused].assign(reason="amount_not_chosen")[rules.LEFT_OUT_COLUMNS]
    return dataset[~unused].reset_index(drop=True), pd.concat([left_out, more], ignore_index=True)


def _publish(store: Store, synthesized: Sequence[Manifest]) -> None:
    """Make the candidates tables of the store; those of classes that were not written for this time stay."""
    if not synthesized:
        return
    categories = {str(manifest.details["category"]) for manifest in synthesized}

    def made(output: str) -> list[str]:
        return [key for manifest in synthesized for key in manifest.keys(output)]

    def decide(base: Snapshot) -> Change:
        replace = {
            table: [*(key for key in base.keys(table) if not categories & set(_labels(store, key))), *made(output)]
            for table, output in (("synthetic", "kept"), ("rejected_synthetic", "rejected"))
        }
        append = {
            table: base.missing(table, made(output))
            for table, output in (("synthetic_written", "written"), ("synthetic_votes", "votes"))
        }
        return Change(f"synthetic:{digest_of([base.version, replace, append])}", append, replace)

    base = store.publish(decide)
    published = {Written.model_validate(row).identity for row in store.iter_rows(base.keys("synthetic_written"))}
    forget_journals(store, JOURNAL, Written, lambda written: written.identity in published)


def _labels(store: Store, key: str) -> list[str]:
    labels: list[str] = store.read_table([key], ["label"])["label"].unique().to_pylist()
    return labels


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().items()}


def as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """A data frame as a table of that schema."""
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
