"""The night in a few lines: what came in, what was labelled at which cost, which candidates there were, the verdict. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# Airflow's notes end there.
MAX_CHARACTERS = 1000
_NAMED_REASON = 160


def summarize(results: Mapping[str, Sequence[Any]], failed: Sequence[str] = ()) -> str:
    """Summary of the runs of one night, as Markdown.

    Parameters
    ----------
    results : mapping
        What the tasks handed on, by task: manifests as JSON, in the order of mapped tasks. Of all runs that led to this one;
        missing tasks (a run by hand, a night without new reviews) are left out of the summary.
    failed : sequence of str
        Tasks that failed.

    Returns
    -------
    str
        At most :data:`MAX_CHARACTERS`; empty when there is nothing to say.
    """
    manifests = {task: [value for value in values if _is_manifest(value)] for task, values in results.items()}

    def one(task: str) -> dict[str, Any] | None:
        found = manifests.get(task) or []
        return found[-1] if found else None

    lines = [
        f"**Failed**: {', '.join(failed)}" if failed else _verdict(one("gate"), one("promote")),
        _reviews(one("publish"), one("ingest")),
        _labels(one("aggregate")),
        _training_set(one("build_dataset")),
        _candidates(one("evaluate"), one("gate")),
        _skipped([*manifests.get("train", []), *manifests.get("finetune", [])]),
    ]
    text = "\n".join(line for line in lines if line)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 2].rstrip() + " …"


def _is_manifest(value: Any) -> bool:
    return isinstance(value, dict) and {"stage", "digest", "counts", "details"} <= value.keys()


def _verdict(gated: Mapping[str, Any] | None, promoted: Mapping[str, Any] | None) -> str:
    if gated is None:
        return ""
    challenger = gated["details"].get("challenger")
    if promoted is not None and promoted["details"].get("promoted"):
        details = promoted["details"]
        before = f"version {details['previous']}" if details.get("previous") else "none"
        return f"**Promoted**: version {details.get('champion')} ({details.get('candidate')}), before: {before}"
    if challenger is None:
        return f"**Not promoted**: {gated['details'].get('barred') or 'no candidate passed the gate'}"
    why = (promoted or {}).get("details", {}).get("reason") or "it waits"
    return f"**Not promoted**: version {challenger['version']} ({challenger['candidate']}) passed the gate; {why}"


def _reviews(published: Mapping[str, Any] | None, ingested: Mapping[str, Any] | None) -> str:
    counts = (published or ingested or {}).get("counts") or {}
    if "rows_in" not in counts:
        return ""
    if not counts["rows_in"]:
        return "- Reviews: none came in"
    names = (("known", "known"), ("clean", "new"), ("duplicates", "duplicates"), ("quarantined", "quarantined"))
    parts = ", ".join(f"{counts[name]:,} {word}" for name, word in names if counts.get(name) is not None)
    return f"- Reviews: {counts['rows_in']:,} in: {parts}"


def _labels(labelled: Mapping[str, Any] | None) -> str:
    if labelled is None:
        return ""
    counts, costs = Counter(labelled["counts"]), Counter(labelled["details"].get("costs") or {})
    tokens = costs["tokens_in"] + costs["tokens_out"]
    spent = f"{tokens:,.0f} tokens, " if tokens else ""
    said = f"{counts['labels']:,}, changed {counts['changed']:,}; new votes {counts['new_votes']:,}"
    return f"- Labels: {said}; cost {spent}{costs['cost']:.2f}"


def _training_set(built: Mapping[str, Any] | None) -> str:
    counts = {} if built is None else built["counts"]
    if "train_rows" not in counts:
        return ""
    return f"- Training set: {counts['train_rows']:,} train, {counts.get('validation_rows', 0):,} validation"


def _candidates(evaluated: Mapping[str, Any] | None, gated: Mapping[str, Any] | None) -> str:
    if evaluated is None:
        return ""
    verdicts = {} if gated is None else gated["details"].get("verdicts") or {}
    rows = sorted(evaluated["details"].get("candidates") or [], key=lambda row: -(row.get("weighted_f1") or 0.0))
    lines = []
    for row in rows:
        verdict = verdicts.get(row["candidate"]) or {}
        figure = f"weighted F1 {row['weighted_f1']:.3f}" if row.get("weighted_f1") is not None else "not judged on gold"
        reason = str(verdict.get("reason", ""))
        reason = f", gate {reason if len(reason) <= _NAMED_REASON else reason[: _NAMED_REASON - 1] + '…'}" if reason else ""
        lines.append(f"- {row['candidate']}: {figure}{reason}")
    return "\n".join(lines)


def _skipped(trained: Sequence[Mapping[str, Any]]) -> str:
    names = [str(manifest["details"]["candidate"]) for manifest in trained if "skipped" in manifest["details"]]
    return f"- Skipped: {', '.join(names)}" if names else ""
