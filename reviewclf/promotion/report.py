"""What people read of a verdict: the gate's report as a page that needs nothing from outside, and the model card. Pure.

The model card is after Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from reviewclf.promotion.rules import GateReport

# A category with fewer gold reviews has a recall that says little, and one with less recall is named as weak.
_THIN_ROWS = 20
_WEAK_RECALL = 0.7


def report_html(reports: Sequence[GateReport], *, title: str) -> str:
    """Reports of the gate as a page, a section each, failed rules first; light and dark, wide and narrow."""
    return _environment().get_template("report.html").render(reports=reports, title=title)


def model_card(
    result: Mapping[str, Any], report: GateReport, *, dataset: Mapping[str, Any], gold_rows: int, gate_report: str = ""
) -> str:
    """What a version is for, what it was made from, how good it is, what it cannot do: Markdown for MLflow.

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
    counts: Mapping[str, int] = dataset.get("counts") or {}
    splits = (("train_rows", "training"), ("validation_rows", "validation"))
    trained = [row for row in (dataset.get("card") or {}).get("rows", []) if row["split"] == "train"]
    rows = {(row["label"], row["origin"]): row["rows"] for row in trained}
    origins = sorted({origin for _, origin in rows})
    scored: Sequence[Mapping[str, Any]] = result.get("per_class") or []
    known = [item for item in scored if item["support"] >= _THIN_ROWS]
    return (
        _environment()
        .get_template("card.md")
        .render(
            result={"weighted_f1": None, **result},
            report=report,
            gold_rows=gold_rows,
            gate_report=gate_report,
            splits=[f"{counts[name]} {word}" for name, word in splits if name in counts],
            origins=origins,
            rows_by_category=[
                [label, *(rows.get((label, origin), 0) for origin in origins)]
                for label in dict.fromkeys(row["label"] for row in trained)
            ],
            figures_by_category=[
                [item["label"], item["support"], *(f"{item[name]:.2f}" for name in ("precision", "recall", "f1"))]
                for item in scored
            ],
            thin=[f"{item['label']} ({item['support']})" for item in scored if item["support"] < _THIN_ROWS],
            weak=[f"{item['label']} ({item['recall']:.2f})" for item in known if item["recall"] < _WEAK_RECALL],
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reviewclf", "promotion/templates"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals["space"] = "\N{NO-BREAK SPACE}" * 3
    return environment
