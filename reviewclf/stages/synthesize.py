"""Reviews written for thin classes: which classes are thin, and what is written and kept for each."""

from __future__ import annotations

import logging
from typing import Any

from reviewclf import tables
from reviewclf.augmentation.filters import filter_table
from reviewclf.augmentation.generate import generate_and_filter
from reviewclf.augmentation.generators import Written, make_generator
from reviewclf.augmentation.prompts import load_writing_prompts
from reviewclf.errors import (
    AnnotatorUnavailableError,
    AugmentationError,
    DataContractError,
    LabelingError,
    SettingsError,
    SourceUnavailableError,
)
from reviewclf.labeling.annotators import RecordedAnnotator, make_annotators
from reviewclf.labeling.annotators.base import Annotator, Vote
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.stages.dataset import DatasetInputs, as_table
from reviewclf.store import StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash

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
    try:
        generator = make_generator(settings, Taxonomy.load(settings.taxonomy))
    except _NOBODY_WRITES as error:
        logger.error("goes on without synthetic reviews: %s", error)  # noqa: TRY400 - said in words
        details: dict[str, Any] = {"classes": [], "skipped": f"{type(error).__name__}: {error}", "failed": True}
        return Manifest(stage="plan_synthesis", digest=digest_of(details), counts={"thin_classes": 0}, details=details)
    given = DatasetInputs(settings)
    inputs = {
        **given.digests(),
        "thin": [settings.augmentation.thin_share, settings.augmentation.amounts, settings.augmentation.max_rows],
        "writer": None if generator is None else generator.version,
    }

    def work() -> StageResult:
        for note in given.gold.notes if given.gold else ():
            logger.warning(note)
        if generator is None:
            reason = "nobody writes: REVIEWCLF_SYNTHETIC is empty, or REVIEWCLF_AUGMENTATION__BACKEND is none"
            return StageResult(counts={"thin_classes": 0}, details={"classes": [], "skipped": reason})
        dataset, _ = given.split(given.labelled()[0])
        train = dataset[dataset["split"] == "train"]["label"].value_counts()
        limit = settings.augmentation.thin_share * float(train.median())
        most = max(settings.augmentation.amounts)
        classes = [
            {"category": name, "rows": int(train[name]), "wanted": min(settings.augmentation.max_rows, int(most * train[name]))}
            for name in given.taxonomy.names
            if name in train.index and train[name] < limit and generator.available(name) != 0
        ]
        for row in classes:
            logger.info("%(category)s is thin: %(rows)d training rows; %(wanted)d synthetic ones are tried", row)
        return StageResult(
            outputs={"real": given.store.put_table(as_table(dataset, tables.DATASET_SCHEMA))},
            counts={"thin_classes": len(classes)},
            details={"classes": classes, "median_rows": float(train.median())},
        )

    return given.store.run_stage("plan_synthesis", 1, inputs, work)


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
    votes_cost = annotator is not None and annotator.is_costly
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
        "known": snapshot.identity("synthetic_written") if generator.is_costly else {},
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
            known_votes=known_votes if votes_cost else (),
            shards=len(planned_classes),
        )
        rules: Any = result.report["rules"]
        return StageResult(
            outputs={
                "kept": store.put_table(as_table(result.kept, tables.SYNTHETIC_SCHEMA)),
                "rejected": store.put_table(as_table(result.rejected, tables.SYNTHETIC_SCHEMA)),
                "written": store.put_part(result.written if generator.is_costly else [], tables.WRITTEN_SCHEMA),
                "votes": store.put_part(result.votes if votes_cost else [], tables.VOTE_SCHEMA),
            },
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


def _voter(settings: Settings, taxonomy: Taxonomy) -> Annotator | None:
    """Who votes on candidates: the language model, or what was recorded of one."""
    if settings.llm.backend == "recorded":
        return None if settings.synthetic_votes is None else RecordedAnnotator.load(settings.synthetic_votes, taxonomy.names)
    return make_annotators(settings, taxonomy)[0]
