"""The tables' contracts as Arrow schemas: what each room may rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

Checked = Literal["raw", "clean"]

# Who decided a label, and whose vote it is where `annotator` begins with it.
HUMAN = "human"

_WHEN = pa.timestamp("us", tz="UTC")

# `row_number` counts a file's data rows from 1; `extra` holds the source's other columns as a JSON object.
RAW_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("created_at", _WHEN),
        ("extra", pa.string()),
        ("row_number", pa.int64()),
    ]
)

# `payload` is what came in, as it came: the raw line, or the row as JSON. `layout`, as JSON, says how the lines of a delimited
# file were laid out; parts written before it was kept lack it. A row that was read, and refused later, has its `review_id`.
QUARANTINE_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("row_number", pa.int64()),
        ("reason", pa.string()),
        ("payload", pa.string()),
        ("source", pa.string()),
        ("layout", pa.string()),
    ]
)

CLEAN_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text", pa.string()),
        ("text_clean", pa.string()),
        ("text_hash", pa.string()),
        ("source", pa.string()),
        ("created_at", _WHEN),
        ("dt", pa.string()),
    ]
)

# `duplicate_of` is the review_id of the clean row with the same text_hash. `text` and `created_at` are the copy's own; parts
# written before they were kept lack them.
DUPLICATE_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("source", pa.string()),
        ("row_number", pa.int64()),
        ("text_hash", pa.string()),
        ("duplicate_of", pa.string()),
        ("text", pa.string()),
        ("created_at", _WHEN),
    ]
)

# Texts that reviews had before they were edited; `replaced_by` is the text_hash of the newer text, beside its time.
HISTORY_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("text_clean", pa.string()),
        ("text_hash", pa.string()),
        ("created_at", _WHEN),
        ("replaced_by", pa.string()),
        ("replaced_by_created_at", _WHEN),
    ]
)

# Rows that stay in `clean`; `near_duplicate_of` is the text_hash of an earlier row that is much alike, and may be edited since.
NEAR_DUPLICATE_SCHEMA = pa.schema([("review_id", pa.string()), ("text_hash", pa.string()), ("near_duplicate_of", pa.string())])

# What an annotator is shown.
REVIEW_SCHEMA = pa.schema([("text_hash", pa.string()), ("text", pa.string()), ("review_ids", pa.list_(pa.string()))])

# `reason` says why a vote has no label.
VOTE_SCHEMA = pa.schema(
    [
        ("text_hash", pa.string()),
        ("annotator", pa.string()),
        ("prompt", pa.string()),
        ("draw", pa.int64()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("raw", pa.string()),
        ("reason", pa.string()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("seconds", pa.float64()),
    ]
)

# `decision`: kept (trained on), review (for people to decide) or dropped.
LABEL_SCHEMA = pa.schema(
    [
        ("text_hash", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("agreement", pa.float64()),
        ("votes", pa.int64()),
        ("method", pa.string()),
        ("origin", pa.string()),
        ("decision", pa.string()),
    ]
)

# What people are asked about, most useful first.
QUEUE_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_hash", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("agreement", pa.float64()),
        ("suspicion", pa.float64()),
        ("reason", pa.string()),
    ]
)

DATASET_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_clean", pa.string()),
        ("label", pa.string()),
        ("weight", pa.float64()),
        ("origin", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
    ]
)

# What one model answers on gold; no texts.
GOLD_ANSWERS_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_hash", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("confidence", pa.float64()),
    ]
)

LEFT_OUT_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_clean", pa.string()),
        ("label", pa.string()),
        ("origin", pa.string()),
        ("reason", pa.string()),
    ]
)


# A review that was written, not received. `generator`, `prompt`, `seed`, `request` and `place` say where it came from,
# `examples` (text hashes) which real reviews its writer was shown; `share` is that of the votes for `label`. Of rejected ones
# `reason` is the filter's rule and `detail` what it found.
SYNTHETIC_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text", pa.string()),
        ("text_clean", pa.string()),
        ("text_hash", pa.string()),
        ("label", pa.string()),
        ("generator", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("request", pa.int64()),
        ("place", pa.int64()),
        ("examples", pa.list_(pa.string())),
        ("votes", pa.int64()),
        ("share", pa.float64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


# Answers of those who write, as they came.
WRITTEN_SCHEMA = pa.schema(
    [
        ("category", pa.string()),
        ("number", pa.int64()),
        ("seed", pa.int64()),
        ("prompt", pa.string()),
        ("generator", pa.string()),
        ("examples", pa.list_(pa.string())),
        ("texts", pa.list_(pa.string())),
        ("raw", pa.string()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


# What one model version answered to a review; exactly one row per (review_id, text_hash, model_version), so that a review which
# was edited is answered anew. `abstained`: the confidence is below the version's threshold for the label. `role` is what the
# version was when it answered: champion or challenger.
PREDICTION_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_hash", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("abstained", pa.bool_()),
        ("model_version", pa.string()),
        ("role", pa.string()),
        ("scored_at", _WHEN),
    ]
)

# What a scoring task is to score; `fresh`: no champion has answered to the review before.
PENDING_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_hash", pa.string()),
        ("text", pa.string()),
        ("text_clean", pa.string()),
        ("fresh", pa.bool_()),
    ]
)

# Fresh reviews with all that the champion said, for the watch over drift; probabilities in the order of `classes` of the
# manifest beside it, `challenger` its answer or null.
NIGHT_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("text_hash", pa.string()),
        ("text_clean", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("abstained", pa.bool_()),
        ("probabilities", pa.list_(pa.float64())),
        ("challenger", pa.string()),
    ]
)

# One report a scoring; `report` is a HealthReport as JSON.
HEALTH_SCHEMA = pa.schema(
    [
        ("at", _WHEN),
        ("digest", pa.string()),
        ("model_version", pa.string()),
        ("rows", pa.int64()),
        ("verdict", pa.string()),
        ("report", pa.string()),
    ]
)


def signature_table(text_hashes: Sequence[str], signatures: np.ndarray) -> pa.Table:
    """MinHash signatures (uint32, shape (n, permutations)) as a table of fixed-size lists."""
    width = signatures.shape[1]
    values = pa.array(np.ascontiguousarray(signatures, dtype=np.uint32).ravel(), pa.uint32())
    return pa.table(
        {
            "text_hash": pa.array(list(text_hashes), pa.string()),
            "signature": pa.FixedSizeListArray.from_arrays(values, width),
        }
    )


def signature_array(table: pa.Table) -> np.ndarray:
    """The signatures of :func:`signature_table` as uint32, shape (n, permutations)."""
    column = table["signature"].combine_chunks()
    array: np.ndarray = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return array
