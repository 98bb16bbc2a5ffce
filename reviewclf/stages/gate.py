"""The gate as a stage: evidence of every candidate, verdicts, versions in the registry, and the challenger."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from reviewclf.data.gold import Gold, load_gold
from reviewclf.errors import GateError
from reviewclf.evaluation import paired_bootstrap
from reviewclf.manifest import Manifest
from reviewclf.promotion.rules import Evidence, GateReport, Measure, apply_rules, comparison_measure, rules_of
from reviewclf.registry.runs import log_summary, parent_of, tracker_of
from reviewclf.settings import Settings
from reviewclf.stages.evaluate import Scored, score_champion, seen_rows
from reviewclf.store import StageResult, Store
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
    gold_digest = None if gold is None else gold.digest
    if evaluated.inputs.get("gold") != gold_digest:
        raise GateError("gold has changed since the candidates were scored (REVIEWCLF_GOLD): run `evaluate` again")
    champion = None if gold is None else score_champion(store, taxonomy, tracker, gold, settings.serving)
    against = None if champion is None else champion.version
    labels = [] if gold is None else gold.frame["label"].tolist()
    rules = rules_of(settings.gate, {name: labels.count(name) for name in taxonomy.names})
    written_at = None if gold is None else gold.written_at
    age = None if written_at is None else (datetime.now(UTC) - written_at).total_seconds() / 86_400
    limit = settings.gate.max_gold_age_days
    inputs = {
        "evaluated": evaluated.digest,
        "limits": settings.gate,
        "champion": None if champion is None else [champion.version, champion.score.digest],
        # The verdict of an hour ago holds until gold becomes too old.
        "gold_too_old": None if limit is None else age is None or age > limit,
    }
    candidates: Any = evaluated.details["candidates"]
    dataset_digest = str(evaluated.details["dataset"])

    def work() -> StageResult:
        reports = []
        for result in candidates:
            measures = _measures(evaluated, result, gold, age)
            if gold is not None and champion is not None:
                measures["not_worse_than_champion"] = _compare(settings, store, taxonomy, result, gold, champion)
            about = {"candidate": result["candidate"], "champion": against, "dataset": dataset_digest, "gold": gold_digest}
            reports.append(apply_rules(Evidence(measures=measures, **about), rules))
        return StageResult(
            counts={"candidates": len(reports), "passed": sum(report.passed for report in reports)},
            details={"reports": [report.model_dump(mode="json") for report in reports]},
        )

    # The verdicts are a result of their inputs; what the registry shows of them may have been changed since, so it is
    # brought up to date every time.
    judged = store.run_stage("gate", 2, inputs, work)
    kept: Any = judged.details["reports"]
    reports = [GateReport.model_validate(report) for report in kept]
    parent = parent_of(tracker, dataset_digest)
    dataset = store.manifest("dataset", dataset_digest)
    verdicts = _publish(settings, tracker, evaluated, judged, reports, dataset)
    best = _best(candidates, verdicts)
    _log_page(tracker, parent, reports, "Gate report of a retrain")
    log_summary(tracker, parent, {} if dataset is None else dataset.counts, candidates, verdicts, best)
    details: dict[str, Any] = {
        "verdicts": verdicts,
        "challenger": best,
        "champion": against,
        "evaluated": evaluated.digest,
        "retrain_run": parent,
        "gate_report": tracker.artifact_address(parent, "gate/report.html", ui=settings.mlflow_url),
    }
    logger.info("gate report: %s", details["gate_report"])
    if best is not None:
        details["summary"] = _summary(best, next(r for r in reports if r.candidate == best["candidate"]))
        why = barred(History(tracker, store), best["version"])
        if why is None:
            challenge(tracker, best["version"])
        else:
            said = f"version {best['version']} ({best['candidate']}) is no challenger: {why}"
            details |= {"challenger": None, "barred": said}
            logger.warning("%s", said)
    return judged.model_copy(update={"details": details})


def _measures(evaluated: Manifest, result: dict[str, Any], gold: Gold | None, age: float | None) -> dict[str, Measure]:
    """What the rules may ask about one candidate, by name."""
    n = evaluated.counts["gold_rows"]
    leaks = str(evaluated.details.get("leak_check"))
    measures = {
        "gold_rows": Measure(value=n, n=n, note="" if n else "no gold set (REVIEWCLF_GOLD): nothing passes by itself"),
        "seconds_per_example": Measure(value=result["seconds_per_example_p95"], n=result["timed_calls"]),
        "leak_check": Measure(value=float(leaks == "passed"), n=n, note="" if leaks == "passed" else leaks),
        "model_mib": Measure(value=result["model_mib"], n=1),
    }
    if gold is None:
        return measures
    interval = f"95% interval {result['weighted_f1_low']:.3f} to {result['weighted_f1_high']:.3f}"
    measures["weighted_f1"] = Measure(value=result["weighted_f1"], n=n, note=interval)
    measures |= {name: Measure(value=result[name], n=n) for name in ("weighted_f1_low", "macro_f1", "accuracy", "ece")}
    measures |= {
        f"{name}/{item['label']}": Measure(value=item[name], n=item["support"])
        for item in result["per_class"]
        for name in ("recall", "precision", "f1")
    }
    written = "" if gold.written_at is None else f"{gold.written_at:%Y-%m-%d}"
    return measures | {"gold_age_days": Measure(value=age, n=n, note=written)}


def _compare(
    settings: Settings, store: Store, taxonomy: Taxonomy, result: dict[str, Any], gold: Gold, champion: Scored
) -> Measure:
    """Paired bootstrap on the gold rows that the champion has not been trained on: a model knows its own training rows."""
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
    tracker: Tracker,
    evaluated: Manifest,
    judged: Manifest,
    reports: list[GateReport],
    dataset: Manifest | None,
) -> dict[str, Any]:
    """Register every candidate with its verdict, report and card; what is there already is left as it is."""
    from reviewclf.promotion.report import model_card
    from reviewclf.registry.model import register

    described = {} if dataset is None else {"counts": dataset.counts, "card": dataset.details.get("card") or {}}
    results: Any = evaluated.details["candidates"]
    verdicts: dict[str, Any] = {}
    for result, report in zip(results, reports, strict=True):
        run_id, candidate = result["run_id"], result["candidate"]
        address = tracker.artifact_address(run_id, "gate/report.html", ui=settings.mlflow_url)
        card = model_card(result, report, dataset=described, gold_rows=evaluated.counts["gold_rows"], gate_report=address)
        tags = {"reviewclf.gate": "passed" if report.passed else "failed", "reviewclf.gate_reason": report.reason}
        about = {
            "reviewclf.candidate": candidate,
            "reviewclf.dataset": str(evaluated.details["dataset"]),
            "reviewclf.gold": str(evaluated.inputs["gold"] or ""),
            "reviewclf.gate_report": address,
        }
        version = register(tracker, run_id=run_id, model_uri=result["model_uri"], tags={**tags, **about}, description=card)
        if tracker.client.get_run(run_id).data.tags.get(_VERDICT_TAG) != judged.digest:
            tracker.log_json(run_id, report.model_dump(mode="json"), "gate/report.json")
            _log_page(tracker, run_id, [report], f"Gate report: {candidate}, version {version}")
            tracker.log_text(run_id, card, "model_card.md")
            tracker.log(run_id, tags={**tags, _VERDICT_TAG: judged.digest})
        verdicts[candidate] = {
            "verdict": tags["reviewclf.gate"],
            "reason": report.reason,
            "version": version,
            "gate_report": address,
        }
        logger.info("%s (version %s): %s", candidate, version, report.reason)
    return verdicts


def _log_page(tracker: Tracker, run_id: str, reports: list[GateReport], title: str) -> None:
    from reviewclf.promotion.report import report_html

    tracker.log_text(run_id, report_html(reports, title=title), "gate/report.html")


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
