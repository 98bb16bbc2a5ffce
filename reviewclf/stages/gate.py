"""The gate as a stage: evidence of every candidate, verdicts, versions in the registry, and the challenger."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from reviewclf.data.gold import Gold, load_gold
from reviewclf.errors import GateError
from reviewclf.manifest import Manifest
from reviewclf.promotion.rules import Evidence, GateReport, Measure, comparison_measure, judge, rules_of
from reviewclf.registry.runs import log_summary, parent_of, tracker_of
from reviewclf.settings import Settings
from reviewclf.stages.evaluate import Scored, score_champion, seen_rows
from reviewclf.storage import StageResult, Store
from reviewclf.taxonomy import Taxonomy

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)

_VERDICT_TAG = "reviewclf.verdict"


def gate(settings: Settings, evaluated: Manifest) -> Manifest:
    """Hold every candidate against the gate and the champion of this moment, register all, point `challenger` at the best.

    The best that passed is the one with the highest weighted F1 on validation: choosing by gold would make gold's own figure
    too good to be true. A version that people have decided against, on the same data, is no challenger.

    Returns
    -------
    Manifest
        ``details``: ``verdicts`` by candidate (``verdict``, ``reason``, ``version``, ``gate_report``), ``challenger``
        (candidate, version, run) or null, ``champion`` that they were held against, ``gate_report`` (the address of the page),
        and ``summary`` of the challenger for the person who is asked.

    Raises
    ------
    GateError
        A rule of the settings cannot be used, or the gold that was scored is not the gold there is now.
    """
    from reviewclf.promotion.aliases import barred, challenge
    from reviewclf.promotion.history import History

    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    tracker = tracker_of(settings)
    gold = load_gold(settings, taxonomy)
    if evaluated.inputs.get("gold") != (None if gold is None else gold.digest):
        raise GateError("gold has changed since the candidates were scored (REVIEWCLF_GOLD): run `evaluate` again")
    champion = None if gold is None else score_champion(store, taxonomy, tracker, gold, settings.serving)
    rules = rules_of(settings.gate, _classes(taxonomy, gold))
    age = _age_days(gold)
    limit = settings.gate.max_gold_age_days
    inputs = {
        "evaluated": evaluated.digest,
        "limits": settings.gate,
        "champion": None if champion is None else [champion.version, champion.score.digest],
        # The verdict of an hour ago holds until gold becomes too old.
        "gold_too_old": None if limit is None else age is None or age > limit,
    }
    candidates: Any = evaluated.details["candidates"]

    def work() -> StageResult:
        reports = [
            judge(_evidence(settings, store, taxonomy, evaluated, result, gold, age, champion), rules) for result in candidates
        ]
        key = store.put_bytes(json.dumps([report.model_dump(mode="json") for report in reports]).encode(), ".json")
        return StageResult(
            outputs={"reports": key}, counts={"candidates": len(reports), "passed": sum(r.passed for r in reports)}
        )

    # The verdicts are a result of their inputs; what the registry shows of them may have been changed since, so it is
    # brought up to date every time.
    judged = store.run_stage("judge", 1, inputs, work)
    reports = [GateReport.model_validate(item) for item in json.loads(store.read_bytes(judged.keys("reports")[0]))]
    parent = parent_of(tracker, str(evaluated.details["dataset"]))
    verdicts = _publish(settings, store, tracker, evaluated, judged, reports, parent)
    best = _best(candidates, verdicts)
    dataset = store.manifest("dataset", str(evaluated.details["dataset"]))
    log_summary(tracker, parent, {} if dataset is None else dataset.counts, candidates, verdicts, best)
    details: dict[str, Any] = {
        "verdicts": verdicts,
        "challenger": best,
        "champion": None if champion is None else champion.version,
        "evaluated": evaluated.digest,
        "retrain_run": parent,
        "gate_report": tracker.artifact_address(parent, "gate/report.html", ui=settings.mlflow_url),
    }
    if best is not None:
        details["summary"] = _summary(best, next(r for r in reports if r.candidate == best["candidate"]))
    logger.info("gate report: %s", details["gate_report"])
    if best is not None:
        why = barred(History(tracker, store), best["version"])
        if why is None:
            challenge(tracker, best["version"])
        else:
            details |= {
                "challenger": None,
                "barred": f"version {best['version']} ({best['candidate']}) is no challenger: {why}",
            }
            logger.warning("%s", details["barred"])
    return Manifest(
        stage="gate",
        digest=judged.digest,
        inputs=judged.inputs,
        outputs=judged.outputs,
        counts=judged.counts,
        details=details,
    )


def _classes(taxonomy: Taxonomy, gold: Gold | None) -> dict[str, int]:
    counted = {} if gold is None else gold.frame["label"].value_counts().to_dict()
    return {name: int(counted.get(name, 0)) for name in taxonomy.names}


def _age_days(gold: Gold | None) -> float | None:
    if gold is None or gold.written_at is None:
        return None
    return (datetime.now(UTC) - gold.written_at).total_seconds() / 86_400


def _evidence(
    settings: Settings,
    store: Store,
    taxonomy: Taxonomy,
    evaluated: Manifest,
    result: dict[str, Any],
    gold: Gold | None,
    age: float | None,
    champion: Scored | None,
) -> Evidence:
    n = evaluated.counts["gold_rows"]
    leaks = str(evaluated.details.get("leak_check"))
    measures = {
        "gold_rows": Measure(value=n, n=n, note="" if n else "no gold set (REVIEWCLF_GOLD): nothing passes by itself"),
        "seconds_per_example": Measure(value=result["seconds_per_example_p95"], n=result["timed_calls"]),
        "leak_check": Measure(value=float(leaks == "passed"), n=n, note="" if leaks == "passed" else leaks),
        "model_mib": Measure(value=result["model_mib"], n=1),
    }
    if gold is not None:
        interval = f"95% interval {result['weighted_f1_low']:.3f} to {result['weighted_f1_high']:.3f}"
        measures["weighted_f1"] = Measure(value=result["weighted_f1"], n=n, note=interval)
        for name in ("weighted_f1_low", "macro_f1", "accuracy", "ece"):
            measures[name] = Measure(value=result[name], n=n)
        for item in result["per_class"]:
            for name in ("recall", "precision", "f1"):
                measures[f"{name}/{item['label']}"] = Measure(value=item[name], n=item["support"])
        written = "" if gold.written_at is None else f"{gold.written_at:%Y-%m-%d}"
        measures["gold_age_days"] = Measure(value=age, n=n, note=written)
        if champion is not None:
            measures["not_worse_than_champion"] = _comparison(settings, store, taxonomy, result, gold, champion)
    return Evidence(
        candidate=result["candidate"],
        measures=measures,
        champion=None if champion is None else champion.version,
        dataset=str(evaluated.details["dataset"]),
        gold=None if gold is None else gold.digest,
    )


def _comparison(
    settings: Settings, store: Store, taxonomy: Taxonomy, result: dict[str, Any], gold: Gold, champion: Scored
) -> Measure:
    """Paired bootstrap on the gold rows that the champion has not been trained on: a model knows its own training rows."""
    from reviewclf.evaluation import paired_bootstrap

    score = store.manifest("score", result["score"])
    if score is None:
        raise GateError(f"the answers of {result['candidate']} on gold are gone from the store: run `evaluate` again")
    own, other = (store.read_table(manifest.keys("answers")).to_pandas() for manifest in (score, champion.score))
    seen = seen_rows(settings, store, champion.dataset, gold)
    note = ""
    if seen is None:
        note = "whether the champion was trained on any of it is unknown: its dataset is not in this store"
    elif seen:
        note = f"{len(seen)} gold review(s) that the champion was trained on are left out"
        own, other = (frame.drop(index=seen) for frame in (own, other))
    if own.empty:
        return Measure(value=None, n=0, note=f"version {champion.version} was trained on all gold reviews")
    labels = list(dict.fromkeys([*taxonomy.names, *own["predicted"], *other["predicted"]]))
    difference = paired_bootstrap(
        own["label"].tolist(),
        own["predicted"].tolist(),
        other["predicted"].tolist(),
        labels,
        confidence=0.95,
        margin=settings.gate.margin,
    )
    return comparison_measure(difference, champion=champion.version, n=len(own), note=note)


def _publish(
    settings: Settings,
    store: Store,
    tracker: Tracker,
    evaluated: Manifest,
    judged: Manifest,
    reports: list[GateReport],
    parent: str,
) -> dict[str, Any]:
    """Register every candidate with its verdict, report and card; what is there already is left as it is."""
    from reviewclf.promotion.card import model_card
    from reviewclf.promotion.report import report_html
    from reviewclf.registry.model import register

    dataset = store.manifest("dataset", str(evaluated.details["dataset"]))
    described = {} if dataset is None else {"counts": dataset.counts, "card": dataset.details.get("card") or {}}
    results: Any = evaluated.details["candidates"]
    verdicts: dict[str, Any] = {}
    for result, report in zip(results, reports, strict=True):
        run_id = result["run_id"]
        address = tracker.artifact_address(run_id, "gate/report.html", ui=settings.mlflow_url)
        card = model_card(result, report, dataset=described, gold_rows=evaluated.counts["gold_rows"], gate_report=address)
        tags = {"reviewclf.gate": "passed" if report.passed else "failed", "reviewclf.gate_reason": report.reason}
        version = register(
            tracker,
            run_id=run_id,
            model_uri=result["model_uri"],
            tags={
                **tags,
                "reviewclf.candidate": result["candidate"],
                "reviewclf.dataset": str(evaluated.details["dataset"]),
                "reviewclf.gold": str(evaluated.inputs["gold"] or ""),
                "reviewclf.gate_report": address,
            },
            description=card,
        )
        if tracker.client.get_run(run_id).data.tags.get(_VERDICT_TAG) != judged.digest:
            tracker.log_json(run_id, report.model_dump(mode="json"), "gate/report.json")
            page = report_html([report], title=f"Gate report: {result['candidate']}, version {version}")
            tracker.log_text(run_id, page, "gate/report.html")
            tracker.log_text(run_id, card, "model_card.md")
            tracker.log(run_id, tags={**tags, _VERDICT_TAG: judged.digest})
        verdicts[result["candidate"]] = {
            "verdict": tags["reviewclf.gate"],
            "reason": report.reason,
            "version": version,
            "gate_report": address,
        }
        logger.info("%s (version %s): %s", result["candidate"], version, report.reason)
    tracker.log_text(parent, report_html(reports, title="Gate report of a retrain"), "gate/report.html")
    return verdicts


def _best(results: list[dict[str, Any]], verdicts: dict[str, Any]) -> dict[str, Any] | None:
    passed = [result for result in results if verdicts[result["candidate"]]["verdict"] == "passed"]
    best = max(passed, key=lambda result: result["validation_weighted_f1"], default=None)
    if best is None:
        return None
    version = verdicts[best["candidate"]]["version"]
    return {"candidate": best["candidate"], "version": version, "run_id": best["run_id"]}


def _summary(best: dict[str, Any], report: GateReport) -> str:
    """The gate's report in a few lines of Markdown."""
    against = "There is no champion yet." if report.champion is None else f"Held against version {report.champion}."
    lines = [f"{best['candidate']}, version {best['version']}, passed all {len(report.rules)} rules. {against}", ""]
    lines += [
        f"- {rule.rule}: {'none' if rule.value is None else f'{rule.value:.4g}'} ({rule.comparison} {rule.limit:g})"
        f"{', ' + rule.note if rule.note else ''}"
        for rule in report.rules
    ]
    return "\n".join(lines)
