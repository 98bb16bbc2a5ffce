"""The model card of a version: what it is for, what it was made from, how good it is, what it cannot do. Pure.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reviewclf.promotion.rules import GateReport

_THIN = 20
_SPACE = "\u00a0" * 3


def model_card(
    result: Mapping[str, Any], report: GateReport, *, dataset: Mapping[str, Any], gold_rows: int, gate_report: str = ""
) -> str:
    """Markdown for a version's description in MLflow.

    Parameters
    ----------
    result : mapping
        One of ``details["candidates"]`` of the stage `evaluate`.
    report : GateReport
    dataset : mapping
        The manifest of the training set: ``counts``, and ``card`` with ``rows``; may be empty.
    gold_rows : int
        Reviews labelled by people that it was judged on.
    gate_report : str
        Address of the gate's report.
    """
    parts = [
        f"{result['candidate']}: category of a marketplace review. Gate: {report.reason}.",
        _use(),
        _data(report, dataset),
        _figures(result, gold_rows),
        _limits(result, gold_rows),
        _gate(report, gate_report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use() -> str:
    return (
        "## Intended use\n\nNames the product category of a review, or says that the review names none, with a confidence; for "
        "counting, routing and search. Not for decisions about people, not for reviews in languages or about goods that the "
        "training reviews do not hold. The text goes in as it came: the model cleans it itself."
    )


def _data(report: GateReport, dataset: Mapping[str, Any]) -> str:
    counts: Mapping[str, int] = dataset.get("counts") or {}
    splits = ", ".join(
        f"{counts[f'{split}_rows']} {name}"
        for split, name in (("train", "training"), ("validation", "validation"))
        if f"{split}_rows" in counts
    )
    lines = ["## Trained on", "", f"Dataset `{report.dataset or 'unknown'}`{': ' + splits + ' rows' if splits else ''}."]
    rows = [row for row in (dataset.get("card") or {}).get("rows", []) if row["split"] == "train"]
    if rows:
        origins = sorted({row["origin"] for row in rows})
        by_label: dict[str, dict[str, Any]] = {}
        for row in rows:
            by_label.setdefault(row["label"], {})[row["origin"]] = row["rows"]
        cells = ([label, *(str(found.get(origin, 0)) for origin in origins)] for label, found in by_label.items())
        lines += ["", *_table(["category", *origins], cells)]
    lines += ["", "Labels are votes of language models and people; gold reviews and their near-duplicates are left out."]
    return "\n".join(lines)


def _figures(result: Mapping[str, Any], gold_rows: int) -> str:
    seconds = f"One review on the serving path: p50 {result['seconds_per_example_p50']:.4f} s, p95 "
    seconds += f"{result['seconds_per_example_p95']:.4f} s."
    if result.get("weighted_f1") is None:
        return f"## Measured\n\nNot judged: there were no gold reviews. {seconds}"
    cells = (
        [item["label"], str(item["support"]), *(f"{item[name]:.2f}" for name in ("precision", "recall", "f1"))]
        for item in result["per_class"]
    )
    lines = [
        "## Measured",
        "",
        f"On {gold_rows} gold reviews, labelled by people and never trained on: weighted F1 **{result['weighted_f1']:.3f}** "
        f"(95% interval {result['weighted_f1_low']:.3f} to {result['weighted_f1_high']:.3f}), "
        f"macro F1 {result['macro_f1']:.3f}, accuracy {result['accuracy']:.3f}, calibration error {result['ece']:.3f}. "
        f"Agreement with votes on validation: {result['validation_weighted_f1']:.3f}.",
        "",
        *_table(["category", "gold reviews", "precision", "recall", "F1"], cells),
        "",
        seconds,
    ]
    return "\n".join(lines)


def _limits(result: Mapping[str, Any], gold_rows: int) -> str:
    lines = ["## Limits", ""]
    scored: Sequence[Mapping[str, Any]] = result.get("per_class") or []
    thin = [f"{item['label']} ({item['support']})" for item in scored if item["support"] < _THIN]
    if gold_rows:
        lines.append("- The interval is that of drawing gold reviews anew; another source or season is another matter.")
    else:
        lines.append("- Nothing is known about how often it is right.")
    if thin:
        lines.append(f"- Too few gold reviews to say much about: {', '.join(thin)}.")
    weak = [f"{item['label']} ({item['recall']:.2f})" for item in scored if item["support"] >= _THIN and item["recall"] < 0.7]
    if weak:
        lines.append(f"- Misses many reviews of: {', '.join(weak)}.")
    lines.append("- A review that names two products gets one category.")
    return "\n".join(lines)


def _gate(report: GateReport, address: str) -> str:
    against = "no champion" if report.champion is None else f"version {report.champion}"
    cells = (
        [
            rule.rule,
            "" if rule.value is None else f"{rule.value:.4g}",
            f"{rule.comparison} {rule.limit:g}",
            "passed" if rule.passed else "**failed**",
        ]
        for rule in report.rules
    )
    lines = ["## Gate", "", f"Held against {against}{f'; [report]({address})' if address.startswith('http') else ''}.", ""]
    return "\n".join([*lines, *_table(["rule", "value", "limit", "verdict"], cells)])


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown; MLflow draws tables without any space between columns or below, so that cells bring their own."""
    lines = [f"| {' | '.join(f'{name}{_SPACE}' for name in names)} |", "|---|" + "---:|" * (len(names) - 1)]
    return [*lines, *(f"| {' | '.join(f'{cell}{_SPACE}' for cell in row)} |" for row in rows)]
