"""The tables' contracts as Arrow schemas: what each room may rely on."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

Checked = Literal["raw", "clean"]

# Who decided a label, and whose vote it is where `annotator` begins with it.
HUMAN = "human"

_TYPES = {"time": pa.timestamp("us", tz="UTC"), "texts": pa.list_(pa.string()), "numbers": pa.list_(pa.float64())}


def _schema(columns: str) -> pa.Schema:
    """A schema from ``name:type`` separated by spaces; columns without a type are text."""
    named = (column.partition(":") for column in columns.split())
    return pa.schema([(name, _TYPES.get(kind) or pa.type_for_alias(kind or "string")) for name, _, kind in named])


# `row_number` counts a file's data rows from 1; `extra` holds the source's other columns as a JSON object.
RAW_SCHEMA = _schema("review_id text source created_at:time extra row_number:int64")

# `payload` is what came in, as it came: the raw line, or the row as JSON. `layout`, as JSON, says how the lines of a delimited
# file were laid out; parts written before it was kept lack it. A row that was read, and refused later, has its `review_id`.
QUARANTINE_SCHEMA = _schema("review_id row_number:int64 reason payload source layout")

# Rows, by position in the table that was checked, which must not go on.
FAILED_SCHEMA = _schema("position:int64 reason")

CLEAN_SCHEMA = _schema("review_id text text_clean text_hash source created_at:time dt")

# `duplicate_of` is the review_id of the clean row with the same text_hash. `text` and `created_at` are the copy's own; parts
# written before they were kept lack them.
DUPLICATE_SCHEMA = _schema("review_id source row_number:int64 text_hash duplicate_of text created_at:time")

# Texts that reviews had before they were edited; `replaced_by` is the text_hash of the newer text, beside its time.
HISTORY_SCHEMA = _schema("review_id source text text_clean text_hash created_at:time replaced_by replaced_by_created_at:time")

# Rows that stay in `clean`; `near_duplicate_of` is the text_hash of an earlier row that is much alike, and may be edited since.
NEAR_DUPLICATE_SCHEMA = _schema("review_id text_hash near_duplicate_of")

# What near-duplicates of a text are found by, without its text: see :mod:`reviewclf.data.sketches`. `width` is that of the
# bands whose keys `keys` holds as 32-bit numbers one after another. A row may stay when its text has left `clean`.
BANDS_SCHEMA = _schema("text_hash width:int64 keys:binary size:int32 bitmap:binary")

# What an annotator is shown.
REVIEW_SCHEMA = _schema("text_hash text review_ids:texts")

# `reason` says why a vote has no label.
VOTE_SCHEMA = _schema(
    "text_hash annotator prompt draw:int64 label confidence:float64 raw reason tokens_in:int64 tokens_out:int64 seconds:float64"
)

# Texts without anything else. The table `unvoted` has those that annotators still owe votes on after the last labelling.
TEXT_SCHEMA = _schema("text_hash")

# `decision`: kept (trained on), review (for people to decide) or dropped.
LABEL_SCHEMA = _schema("text_hash label confidence:float64 agreement:float64 votes:int64 method origin decision")

# What people are asked about, most useful first.
QUEUE_SCHEMA = _schema("review_id text_hash text label confidence:float64 agreement:float64 suspicion:float64 reason")

DATASET_SCHEMA = _schema("review_id text_clean label weight:float64 origin group split")

# What one model answers on gold; no texts.
GOLD_ANSWERS_SCHEMA = _schema("review_id text_hash label predicted confidence:float64")

LEFT_OUT_SCHEMA = _schema("review_id text_clean label origin reason")

# A review that was written, not received. `generator`, `prompt`, `seed`, `request` and `place` say where it came from,
# `examples` (text hashes) which real reviews its writer was shown; `share` is that of the votes for `label`. Of rejected ones
# `reason` is the filter's rule and `detail` what it found.
SYNTHETIC_SCHEMA = _schema(
    "review_id text text_clean text_hash label generator prompt seed:int64 request:int64 place:int64 examples:texts "
    "votes:int64 share:float64 reason detail"
)

# Answers of those who write, as they came.
WRITTEN_SCHEMA = _schema(
    "category number:int64 seed:int64 prompt generator examples:texts texts:texts raw tokens_in:int64 "
    "tokens_out:int64 seconds:float64"
)

# What one model version answered to a review; exactly one row per (review_id, text_hash, model_version), so that a review which
# was edited is answered anew. `abstained`: the confidence is below the version's threshold for the label. `role` is what the
# version was when it answered: champion or challenger.
PREDICTION_SCHEMA = _schema("review_id text_hash label confidence:float64 abstained:bool model_version role scored_at:time")

# What a scoring task is to score; `fresh`: no champion has answered to the review before.
PENDING_SCHEMA = _schema("review_id text_hash text text_clean fresh:bool")

# Fresh reviews with all that the champion said, for the watch over drift; probabilities in the order of `classes` of the
# manifest beside it, `challenger` its answer or null.
NIGHT_SCHEMA = _schema(
    "review_id text_hash text_clean label confidence:float64 abstained:bool probabilities:numbers challenger"
)

# One report a scoring; `report` is a HealthReport as JSON.
HEALTH_SCHEMA = _schema("at:time digest model_version rows:int64 verdict report")

# A digest of 64 bits of each row that came in, as the signed number that Delta knows.
SEEN_SCHEMA = _schema("row:int64")

# Digests of 64 bits of what was erased and must not come back: of source and id (`review`), or of a text hash (`text`).
ERASED_SCHEMA = _schema("kind digest:int64")

# By the name of a table of the store or of a stage's output.
SCHEMAS = {
    "raw": RAW_SCHEMA,
    "quarantine": QUARANTINE_SCHEMA,
    "seen": SEEN_SCHEMA,
    "erased": ERASED_SCHEMA,
    "clean": CLEAN_SCHEMA,
    "duplicates": DUPLICATE_SCHEMA,
    "near_duplicates": NEAR_DUPLICATE_SCHEMA,
    "bands": BANDS_SCHEMA,
    "history": HISTORY_SCHEMA,
    "reviews": REVIEW_SCHEMA,
    "votes": VOTE_SCHEMA,
    "unvoted": TEXT_SCHEMA,
    "labels": LABEL_SCHEMA,
    "synthetic": SYNTHETIC_SCHEMA,
    "rejected_synthetic": SYNTHETIC_SCHEMA,
    "synthetic_written": WRITTEN_SCHEMA,
    "synthetic_votes": VOTE_SCHEMA,
    "dataset": DATASET_SCHEMA,
    "real": DATASET_SCHEMA,
    "predictions": PREDICTION_SCHEMA,
    "pending": PENDING_SCHEMA,
    "night": NIGHT_SCHEMA,
    "health": HEALTH_SCHEMA,
}

# Columns of the store's tables that are never null.
REQUIRED = {
    "raw": ("review_id", "source", "row_number"),
    "quarantine": ("row_number", "reason", "source"),
    "seen": ("row",),
    "erased": ("kind", "digest"),
    "clean": ("review_id", "text_clean", "text_hash", "source"),
    "duplicates": ("review_id", "text_hash", "duplicate_of"),
    "near_duplicates": ("review_id", "text_hash", "near_duplicate_of"),
    "bands": ("text_hash", "width", "keys", "size", "bitmap"),
    "history": ("review_id", "source", "text_hash", "replaced_by"),
    "votes": ("text_hash", "annotator", "prompt", "draw"),
    "unvoted": ("text_hash",),
    "labels": ("text_hash", "label", "decision"),
    "predictions": ("review_id", "text_hash", "label", "model_version", "role", "scored_at"),
    "health": ("at", "report"),
}

# What else holds for each row, by name of the rule, in SQL: Delta's constraints, which other writers keep too.
_SHARE = "confidence IS NULL OR (confidence >= 0 AND confidence <= 1)"
CHECKS: dict[str, dict[str, str]] = {
    "votes": {"confidence_is_a_share": _SHARE},
    "labels": {"confidence_is_a_share": _SHARE, "decision_is_known": "decision IN ('kept', 'review', 'dropped')"},
    "predictions": {"confidence_is_a_share": _SHARE, "role_is_known": "role IN ('champion', 'challenger')"},
}
