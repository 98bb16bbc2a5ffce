"""The training set: which classes are thin, reviews written for them, and rows by split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.augmentation.amounts import Choice, cheapest, choices_of, choose_amounts, curve_table, in_order
from reviewclf.augmentation.filters import filter_table
from reviewclf.augmentation.generate import JOURNAL, generate_and_filter
from reviewclf.augmentation.generators import Written, make_generator
from reviewclf.augmentation.prompts import load_writing_prompts
from reviewclf.data.card import dataset_card, diff_datasets
from reviewclf.data.dataset import LEFT_OUT_COLUMNS
from reviewclf.data.dataset import build_dataset as split_and_check
from reviewclf.data.gold import Gold, load_gold
from reviewclf.errors import (
    AnnotatorUnavailableError,
    AugmentationError,
    DataContractError,
    DatasetError,
    LabelingError,
    SettingsError,
    SourceUnavailableError,
    TrainingError,
)
from reviewclf.labeling.annotators import RecordedAnnotator, make_annotators
from reviewclf.labeling.annotators.base import Annotator, Vote
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.llm.journal import forget_journals
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.storage import Change, Snapshot, StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash
from reviewclf.training.candidates import load_candidates

logger = logging.getLogger(__name__)

# Whoever was to write, or to vote on what was written, cannot be had.
_NOBODY_WRITES = (AugmentationError, DataContractError, LabelingError, SettingsError)


def plan_synthesis(settings: Settings) -> Manifest:
    """Find the classes that are thin, and how many synthetic reviews to try for each.

    Returns
    -------
    Manifest
        ``outputs["real"]``: the real rows by split; ``details["classes"]``: category, real training rows and reviews wanted of
        each thin class that somebody could write for; ``details["skipped"]``: why there is none, where nobody writes;
        ``details["failed"]``: whether somebody was to write who cannot be had.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    snapshot = store.snapshot()
    try:
        generator = make_generator(settings, taxonomy)
    except _NOBODY_WRITES as error:
        logger.error("goes on without synthetic reviews: %s", error)  # noqa: TRY400 - said in words
        details: dict[str, Any] = {"classes": [], "skipped": f"{type(error).__name__}: {error}", "failed": True}
        return Manifest(stage="plan_synthesis", digest=digest_of(details), counts={"thin_classes": 0}, details=details)
    gold = load_gold(settings, taxonomy)
    inputs = {
        **_inputs(settings, snapshot, taxonomy, gold),
        "thin": [settings.augmentation.thin_share, settings.augmentation.amounts, settings.augmentation.max_rows],
        "writer": None if generator is None else generator.version,
    }

    def work() -> StageResult:
        for note in () if gold is None else gold.notes:
            logger.warning(note)
        if generator is None:
            reason = "nobody writes: REVIEWCLF_SYNTHETIC is empty, or REVIEWCLF_AUGMENTATION__BACKEND is none"
            return StageResult(counts={"thin_classes": 0}, details={"classes": [], "skipped": reason})
        labelled, _ = _labelled(store, snapshot, taxonomy)
        dataset, _ = _split(labelled, gold, settings, taxonomy)
        train = dataset[dataset["split"] == "train"]["label"].value_counts()
        limit = settings.augmentation.thin_share * float(train.median())
        most = max(settings.augmentation.amounts)
        classes = [
            {"category": name, "rows": int(train[name]), "wanted": min(settings.augmentation.max_rows, int(most * train[name]))}
            for name in taxonomy.names
            if name in train.index and train[name] < limit and generator.available(name) != 0
        ]
        for row in classes:
            logger.info(
                "%s is thin: %d training rows; %d synthetic ones are tried", row["category"], row["rows"], row["wanted"]
            )
        return StageResult(
            outputs={"real": store.put_table(_table(dataset, tables.DATASET_SCHEMA))},
            counts={"thin_classes": len(classes)},
            details={"classes": classes, "median_rows": float(train.median())},
        )

    return store.run_stage("plan_synthesis", 1, inputs, work)


def thin_classes(planned: Manifest) -> list[str]:
    """Names of the classes that reviews are to be written for."""
    classes: Any = planned.details["classes"]
    return [str(row["category"]) for row in classes]


def synthesize(settings: Settings, planned: Manifest, category: str, *, retry: bool = False) -> Manifest:
    """Have reviews of one thin class written and filtered.

    Where nobody can write or vote, the night goes on without: the manifest says so, and the next night tries again.

    Parameters
    ----------
    planned : Manifest
        From :func:`plan_synthesis`.
    category : str
        One of its classes.
    retry : bool
        Whether the caller tries again while the server is away.

    Returns
    -------
    Manifest
        ``outputs``: ``kept`` and ``rejected`` (with reasons); ``counts``: wanted, written, kept, and refused by each rule;
        ``details["report"]``: that of :func:`reviewclf.augmentation.generate_and_filter`. Or only ``category`` and ``skipped``,
        the reason.

    Raises
    ------
    AnnotatorUnavailableError
        The server is away, and `retry` is set.
    AugmentationError
        The class is not among the planned ones.
    """
    if category not in thin_classes(planned):
        names = ", ".join(thin_classes(planned)) or "none"
        raise AugmentationError(f"nothing is planned for {category!r}; planned are {names}")
    try:
        return _synthesize(settings, planned, category)
    except _NOBODY_WRITES as error:
        if retry and isinstance(error, AnnotatorUnavailableError | SourceUnavailableError):
            raise
        reason = f"{type(error).__name__}: {error}"
        logger.error("goes on without synthetic reviews of %s: %s", category, reason)  # noqa: TRY400 - said in words
        details: dict[str, Any] = {"category": category, "skipped": reason}
        return Manifest(stage="synthesize", digest=digest_of([planned.digest, details]), details=details)


def _synthesize(settings: Settings, planned: Manifest, category: str) -> Manifest:
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    snapshot = store.snapshot()
    generator = make_generator(settings, taxonomy)
    planned_classes: Any = planned.details["classes"]
    wanted = next(row["wanted"] for row in planned_classes if row["category"] == category)
    if generator is None:
        raise AugmentationError("nobody writes any more: REVIEWCLF_AUGMENTATION__BACKEND or REVIEWCLF_SYNTHETIC has changed")
    annotator = _voter(settings, taxonomy)
    inputs = {
        "real": planned.keys("real"),
        "category": category,
        "wanted": wanted,
        "generator": generator.version,
        "annotator": None if annotator is None else annotator.version,
        "prompts": [prompt.name for prompt in load_writing_prompts(settings.augmentation.prompts)],
        "options": settings.augmentation,
        "taxonomy": digest_of(taxonomy),
        "seed": settings.seed,
        # What a budget left open is written by the next run.
        "known": snapshot.keys("synthetic_written") if generator.is_costly else [],
    }

    def work() -> StageResult:
        real = store.read(planned, "real").to_pandas()
        known = [Written.model_validate(row) for row in store.iter_rows(snapshot.keys("synthetic_written"))]
        known_votes = [Vote.model_validate(row) for row in store.iter_rows(snapshot.keys("synthetic_votes"))]
        result = generate_and_filter(
            category,
            wanted,
            generator=generator,
            annotator=annotator,
            taxonomy=taxonomy,
            real=real.assign(text_hash=[text_hash(text) for text in real["text_clean"]]),
            store=store,
            settings=settings,
            known=known if generator.is_costly else (),
            known_votes=known_votes if annotator is not None and annotator.is_costly else (),
            shards=len(planned_classes),
        )
        outputs: dict[str, str | list[str]] = {
            "kept": store.put_table(_table(result.kept, tables.SYNTHETIC_SCHEMA)),
            "rejected": store.put_table(_table(result.rejected, tables.SYNTHETIC_SCHEMA)),
        }
        if generator.is_costly and result.written:
            outputs["written"] = store.put_part(result.written, tables.WRITTEN_SCHEMA)
        if annotator is not None and annotator.is_costly and result.votes:
            outputs["votes"] = store.put_part(result.votes, tables.VOTE_SCHEMA)
        rules: Any = result.report["rules"]
        return StageResult(
            outputs=outputs,
            counts={
                "wanted": wanted,
                "written": len(result.kept) + len(result.rejected),
                "kept": len(result.kept),
                **{f"refused_{rule}": count for rule, count in rules.items() if count},
            },
            details={"category": category, "report": result.report},
        )

    manifest = store.run_stage("synthesize", 1, inputs, work)
    logger.info("filters of %s:\n%s", category, filter_table([manifest.details["report"]]))
    return manifest


def build(settings: Settings, synthesized: Sequence[Manifest] = ()) -> Manifest:
    """Split labelled reviews into train and validation, gold into test, with as many synthetic rows as help.

    Parameters
    ----------
    synthesized : sequence of Manifest
        From :func:`synthesize`, one a class; none where nothing was written.

    Returns
    -------
    Manifest
        The dataset card. ``outputs``: ``dataset`` and ``left_out`` (with reasons); ``counts``: rows by split and origin, and
        by reason left out; ``details``: ``card`` (:func:`reviewclf.data.card.dataset_card`) and ``augmentation`` (how many
        synthetic rows each class gets, and the curve that says so).

    Raises
    ------
    DatasetError
        Nothing is labelled yet, or fewer than two classes are left.
    LeakError
        The splits share texts.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    snapshot = store.snapshot()
    gold = load_gold(settings, taxonomy)
    synthesized = [manifest for manifest in synthesized if "skipped" not in manifest.details]
    synthesized = sorted(synthesized, key=lambda manifest: str(manifest.details["category"]))
    candidates = load_candidates(settings.candidates)
    inputs = {
        **_inputs(settings, snapshot, taxonomy, gold),
        "synthetic": [key for manifest in synthesized for key in manifest.keys("kept")],
        "augmentation": settings.augmentation,
        # Fixed here for the whole retrain: the file may change while its candidates are trained.
        "candidates": [candidate.model_dump(mode="json") for candidate in candidates],
    }

    def work() -> StageResult:
        labelled, n_clean = _labelled(store, snapshot, taxonomy)
        made = _synthetic_rows(store, synthesized)
        dataset, left_out = _split(pd.concat([labelled, made], ignore_index=True), gold, settings, taxonomy)
        choices: list[Choice] = []
        if (dataset["origin"] == "synthetic").any():
            choices, dataset, left_out = _with_what_helps(dataset, left_out, labelled, made, settings, taxonomy, candidates)
        counts = {
            "clean": n_clean,
            "labelled": len(labelled),
            "unlabelled": n_clean - len(labelled),
            "synthetic": len(made),
            **{f"{split}_rows": int(count) for split, count in dataset["split"].value_counts().sort_index().items()},
            **{f"left_out_{reason}": int(count) for reason, count in left_out["reason"].value_counts().sort_index().items()},
        }
        by_class = dataset.groupby(["label", "split"]).size().unstack(fill_value=0)
        placed = labelled[labelled["review_id"].isin(set(dataset.loc[dataset["split"] != "test", "review_id"]))]
        reports: list[Any] = [manifest.details["report"] for manifest in synthesized]
        sources = {str(name): int(count) for name, count in placed["source"].value_counts().items()}
        return StageResult(
            outputs={
                "dataset": store.put_table(_table(dataset, tables.DATASET_SCHEMA)),
                "left_out": store.put_table(_table(left_out, tables.LEFT_OUT_SCHEMA)),
            },
            counts=counts,
            details={
                "rows_by_class": {
                    str(label): {str(split): int(count) for split, count in row.items()} for label, row in by_class.iterrows()
                },
                "rows_by_origin": {str(name): int(n) for name, n in dataset["origin"].value_counts().items()},
                "leak_check": "passed",
                "gold": None if gold is None else {"file": Path(gold.uri).name, "rows": len(gold.frame)},
                "augmentation": [choice.model_dump(mode="json") for choice in choices],
                "card": dataset_card(dataset, left_out, sources=sources, filters=reports),
            },
        )

    manifest = store.run_stage("dataset", 2, inputs, work)
    _publish(store, synthesized)
    chosen = choices_of(manifest)
    if chosen:
        logger.info("synthetic rows that help:\n%s", curve_table(chosen))
    return manifest


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


# -- parts -----------------------------------------------------------------------------------------------------------


def _inputs(settings: Settings, snapshot: Snapshot, taxonomy: Taxonomy, gold: Gold | None) -> dict[str, Any]:
    if not snapshot.keys("labels"):
        raise DatasetError(f"{settings.store_uri}: no labels yet; run the DAGs reviews_ingest and reviews_label first")
    return {
        "clean": snapshot.keys("clean"),
        "labels": snapshot.keys("labels"),
        "gold": None if gold is None else gold.digest,
        "taxonomy": digest_of(taxonomy),
        "options": settings.dataset,
        "min_confidence": settings.aggregation.min_confidence,
        "seed": settings.seed,
    }


def _labelled(store: Store, snapshot: Snapshot, taxonomy: Taxonomy) -> tuple[pd.DataFrame, int]:
    """The labelled reviews, and how many clean ones there are."""
    columns = ["review_id", "text_clean", "text_hash", "source"]
    clean = store.read(snapshot, "clean", columns).to_pandas()
    labels = store.read(snapshot, "labels").to_pandas()
    labelled = clean.merge(labels[labels["label"].isin(taxonomy.names)], on="text_hash", how="inner")
    labelled["hint"] = labelled["method"] == KEYWORDS
    return labelled, len(clean)


def _split(
    labelled: pd.DataFrame, gold: Gold | None, settings: Settings, taxonomy: Taxonomy
) -> tuple[pd.DataFrame, pd.DataFrame]:
    return split_and_check(
        labelled,
        None if gold is None else gold.frame,
        settings.dataset,
        min_confidence=settings.aggregation.min_confidence,
        seed=settings.seed,
        synthetic=settings.augmentation,
        stems=taxonomy.keyword_stems,
    )


def _synthetic_rows(store: Store, synthesized: Sequence[Manifest]) -> pd.DataFrame:
    keys = [key for manifest in synthesized for key in manifest.keys("kept")]
    kept = store.read_table(keys, schema=tables.SYNTHETIC_SCHEMA).to_pandas()
    columns = ["review_id", "text_clean", "text_hash", "label", "examples"]
    same: dict[str, Any] = {"origin": "synthetic", "method": "synthetic", "hint": False, "source": "synthetic"}
    rows: pd.DataFrame = kept[columns].assign(confidence=kept["share"], **same)
    return rows


def _with_what_helps(
    dataset: pd.DataFrame,
    left_out: pd.DataFrame,
    labelled: pd.DataFrame,
    made: pd.DataFrame,
    settings: Settings,
    taxonomy: Taxonomy,
    candidates: Sequence[Any],
) -> tuple[list[Choice], pd.DataFrame, pd.DataFrame]:
    """The dataset with the chosen amounts of synthetic rows; the others are left out, and said so."""
    hints = set(labelled.loc[labelled["hint"], "review_id"])
    rows = dataset[dataset["split"] != "test"]
    rows = rows.assign(text_hash=[text_hash(text) for text in rows["text_clean"]], hint=rows["review_id"].isin(hints))
    written = rows["origin"] == "synthetic"
    examples = dict(zip(made["review_id"], made["examples"], strict=True))
    shown = pd.Series([list(examples[key]) for key in rows.loc[written, "review_id"]], index=rows.index[written], dtype=object)
    synthetic = rows[written].assign(examples=shown)
    try:
        choices = choose_amounts(
            rows[~written],
            synthetic,
            cheapest(candidates),
            classes=taxonomy.names,
            stems=taxonomy.keyword_stems,
            options=settings.augmentation,
            seed=settings.seed,
        )
    except TrainingError as error:
        logger.error("goes on without synthetic reviews: whether they help cannot be tried: %s", error)  # noqa: TRY400
        choices = []
    used = {
        key
        for choice in choices
        for key in in_order(synthetic[synthetic["label"] == choice.category], settings.seed)["review_id"].head(choice.rows)
    }
    unused = (dataset["origin"] == "synthetic") & ~dataset["review_id"].isin(used)
    more = dataset[unused].assign(reason="amount_not_chosen")[LEFT_OUT_COLUMNS]
    return choices, dataset[~unused].reset_index(drop=True), pd.concat([left_out, more], ignore_index=True)


def _voter(settings: Settings, taxonomy: Taxonomy) -> Annotator | None:
    """Who votes on candidates: the language model, or what was recorded of one."""
    if settings.llm.backend == "recorded":
        return None if settings.synthetic_votes is None else RecordedAnnotator.load(settings.synthetic_votes, taxonomy.names)
    return make_annotators(settings, taxonomy)[0]


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


def _table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
