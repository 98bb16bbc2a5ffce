"""What a dataset holds and how it came about, for people; and how two differ."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import JsonValue

from reviewclf.manifest import Manifest

_PACKAGES = ("reviewclf", "numpy", "pandas", "pyarrow", "scikit-learn", "cleanlab", "transformers", "openai")
_NAMED = 20


def versions() -> dict[str, str]:
    """Python and the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def dataset_card(
    dataset: pd.DataFrame, left_out: pd.DataFrame, *, sources: Mapping[str, int], filters: Sequence[Mapping[str, Any]]
) -> dict[str, JsonValue]:
    """Counts of a dataset.

    Parameters
    ----------
    dataset, left_out : DataFrame
        From :func:`reviewclf.data.dataset.build_dataset`.
    sources : mapping of str to int
        Real training and validation rows by where they came from.
    filters : sequence of mapping
        Reports of :func:`reviewclf.augmentation.generate_and_filter`.

    Returns
    -------
    dict
        ``rows`` (one entry for each class, origin and split that occur), ``weights`` and ``class_weights`` of the training
        rows, ``left_out`` by reason and origin, ``sources``, ``filters``, ``versions``.
    """
    train = dataset[dataset["split"] == "train"]
    weights = train.groupby("label")["weight"].sum()
    balanced = weights.sum() / (len(weights) * weights)
    return {
        "rows": _counts(dataset, ["label", "origin", "split"]),
        "weights": {str(label): round(float(value), 4) for label, value in weights.items()},
        "class_weights": {str(label): round(float(value), 4) for label, value in balanced.items()},
        "left_out": _counts(left_out, ["reason", "origin"]),
        "sources": dict(sorted(sources.items())),
        "filters": [dict(report) for report in filters],
        "versions": dict(versions()),
    }


def _counts(frame: pd.DataFrame, columns: list[str]) -> list[JsonValue]:
    counted = frame.groupby(columns).size().reset_index(name="rows")
    return [{column: str(row[column]) for column in columns} | {"rows": int(row["rows"])} for row in counted.to_dict("records")]


def card_markdown(manifest: Manifest) -> str:
    """A dataset's manifest as a page."""
    card: Any = manifest.details.get("card", {})
    lines = [f"# Dataset {manifest.digest}", "", "Rows by class, origin and split; weights are those of the training rows.", ""]
    rows = pd.DataFrame(card["rows"])
    rows["column"] = rows["split"] + ", " + rows["origin"]
    table = rows.pivot_table(index="label", columns="column", values="rows", aggfunc="sum", fill_value=0)
    lines += [f"| class | {' | '.join(table.columns)} | weight | class weight |", "|---|" + "---:|" * (len(table.columns) + 2)]
    for label, counts in table.iterrows():
        weight, balance = card["weights"].get(label, 0.0), card["class_weights"].get(label, 0.0)
        lines.append(f"| {label} | {' | '.join(str(int(count)) for count in counts)} | {weight:.1f} | {balance:.2f} |")
    lines += ["", "## Left out", "", "| reason | origin | rows |", "|---|---|---:|"]
    lines += [f"| {row['reason']} | {row['origin']} | {row['rows']} |" for row in card["left_out"]]
    lines += ["", "## Synthetic reviews", ""]
    for report in card["filters"]:
        lines.append(f"{report['category']}: {report['written']} written by {report['generator']}, {report['kept']} passed.")
        refused = ", ".join(f"{rule} {count}" for rule, count in report["rules"].items() if count)
        lines += [f"Refused: {refused or 'none'}.", ""]
    for choice in manifest.details.get("augmentation") or []:  # type: ignore[union-attr]
        lines += [f"{choice['category']}: {choice['reason']}.", ""]  # type: ignore[index, call-overload]
    lines += ["## Made from", "", "| what | digest or value |", "|---|---|"]
    lines += [f"| {name} | {_short(value)} |" for name, value in manifest.inputs.items() if name != "candidates"]
    lines += [f"| source {name} | {count} rows |" for name, count in card["sources"].items()]
    lines += [f"| version of {name} | {version} |" for name, version in card["versions"].items()]
    return "\n".join(lines) + "\n"


def diff_datasets(old: Manifest, new: Manifest, old_rows: pd.DataFrame, new_rows: pd.DataFrame) -> list[str]:
    """How two datasets differ, in lines of text: inputs, counts, and reviews that came, went or changed.

    Parameters
    ----------
    old, new : Manifest
        Of the stage ``dataset``.
    old_rows, new_rows : DataFrame
        Their rows, ``tables.DATASET_SCHEMA``.
    """
    lines = [f"{old.digest} → {new.digest}"]
    lines += [
        f"input {name}: {_short(old.inputs.get(name))} → {_short(new.inputs.get(name))}"
        for name in sorted({*old.inputs, *new.inputs})
        if old.inputs.get(name) != new.inputs.get(name)
    ]
    keys = ["label", "origin", "split"]
    counts = pd.concat([frame.groupby(keys).size() for frame in (old_rows, new_rows)], axis=1).fillna(0).astype(int)
    for key, before, after in zip(counts.index, counts.iloc[:, 0], counts.iloc[:, 1], strict=True):
        if before != after:
            lines.append(f"rows {', '.join(key)}: {before} → {after} ({after - before:+d})")
    # Gold and reviews may be numbered alike, so the text is part of what a row is.
    both = old_rows.merge(new_rows, on=["review_id", "text_clean"], how="outer", suffixes=("_old", "_new"), indicator=True)
    for side, word in (("right_only", "came"), ("left_only", "went")):
        part = both[both["_merge"] == side]
        if len(part):
            lines.append(
                f"{len(part)} row(s) {word}: {', '.join(part['review_id'][:_NAMED])}{' …' if len(part) > _NAMED else ''}"
            )
    shared = both[both["_merge"] == "both"]
    for column in ("label", "split", "weight", "group"):
        changed = shared[shared[f"{column}_old"] != shared[f"{column}_new"]]
        if len(changed):
            named = ", ".join(
                f"{row['review_id']} {row[f'{column}_old']} → {row[f'{column}_new']}"
                for row in changed.head(_NAMED).to_dict("records")
            )
            lines.append(f"{len(changed)} row(s) changed {column}: {named}{' …' if len(changed) > _NAMED else ''}")
    if len(lines) == 1:
        lines.append("the same rows from the same inputs")
    return lines


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}…"
