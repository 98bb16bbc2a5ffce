"""The steps of a night: each calls the stages of one DAG, and says what came of them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from reviewclf.errors import PASSING_ERRORS, ReviewclfError, SettingsError
from reviewclf.local.progress import summary
from reviewclf.logs import quieten_libraries
from reviewclf.manifest import Manifest
from reviewclf.night.report import (
    CandidateReport,
    ChampionReport,
    LabelsReport,
    NightReport,
    RowsReport,
    ScoredReport,
    StepReport,
    TaskReport,
    VotesReport,
)
from reviewclf.registry import CHAMPION
from reviewclf.settings import Settings
from reviewclf.stages import ingest as ingest_stages
from reviewclf.stages import label as label_stages
from reviewclf.stages import maintain as maintain_stages
from reviewclf.stages import monitor as monitor_stages
from reviewclf.stages import promotion as promotion_stages
from reviewclf.stages import review as review_stages
from reviewclf.stages import score as score_stages
from reviewclf.stages import synthesize as synthesize_stages
from reviewclf.stages import train as train_stages
from reviewclf.store import Store

logger = logging.getLogger(__name__)

_AIRFLOW_CONNECTION = "airflow://"
_AGAIN = "what is done stays done; this may pass by itself, so run `reviewclf night` again"


class Skipped(Exception):  # noqa: N818
    """There is nothing for the rest of a step to do; the message says why."""


class Night:
    """A night that is going on.

    Parameters
    ----------
    settings : Settings
    who : str
        Recorded in the history of promotions; another one each night.
    console : Console
        Takes one line for each finished task.
    """

    def __init__(self, settings: Settings, *, who: str, console: Console) -> None:
        self.settings = settings
        self.report = NightReport()
        self._who = who
        self._console = console

    def run_step(self, step: str, work: Callable[[Night], None]) -> None:
        """Do a step; what it raises becomes its outcome."""
        done = StepReport(step=step)
        self.report.steps.append(done)
        started = time.monotonic()
        try:
            work(self)
        except Skipped as skipped:
            done.outcome, done.reason = "skipped", str(skipped)
        except ReviewclfError as error:
            done.outcome, done.reason = "failed", f"{type(error).__name__}: {error}"
            if isinstance(error, PASSING_ERRORS):
                done.reason += f"; {_AGAIN}"
        except Exception as error:
            logger.exception("%s has failed", step)
            done.outcome, done.reason = "failed", f"{type(error).__name__}: {error}"
        done.seconds = round(time.monotonic() - started, 3)
        self.report.failed |= done.outcome == "failed"
        self._tell(step, "", done.outcome, done.seconds, done.reason)

    def _has_failed(self, step: str) -> bool:
        return any(report.step == step and report.outcome == "failed" for report in self.report.steps)

    def call(self, task: str, stage: Callable[..., Manifest], /, *arguments: Any, **named: Any) -> Manifest:
        """Call a stage, and keep how long it took."""
        step = self.report.steps[-1]
        started = time.monotonic()
        manifest = stage(self.settings, *arguments, **named)
        done = TaskReport(task=task, seconds=round(time.monotonic() - started, 3), counts=manifest.counts)
        step.tasks.append(done)
        self._tell(step.step, task, "done", done.seconds, summary(manifest.model_dump(mode="json")))
        return manifest

    def _tell(self, step: str, task: str, outcome: str, seconds: float, said: str) -> None:
        self._console.print(Text(f"{step:<8} {task:<26} {outcome:<8} {seconds:>7.1f} s  {said}"), soft_wrap=True)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def ingest(self) -> None:
        """DAG reviews_ingest."""
        settings = self.settings
        if settings.source.startswith(_AIRFLOW_CONNECTION):
            raise SettingsError(
                f"REVIEWCLF_SOURCE={settings.source} names a connection of Airflow, which does not run here: give the "
                "database's own address"
            )
        ingested = self.call("ingest", ingest_stages.ingest)
        by_source: Any = ingested.details["by_source"]
        rows = RowsReport(counts=ingested.counts, sources=by_source, quarantine=_refused(settings, ingested))
        self.report.rows = rows
        validated = self.call("validate_raw", ingest_stages.validate_raw, ingested)
        cleaned = self.call("clean", ingest_stages.clean, ingested, validated)
        rows.quarantine = _refused(settings, ingested, cleaned)
        clean_report = self.call("validate_clean", ingest_stages.validate_clean, cleaned)
        published = self.call("publish", ingest_stages.publish, ingested, validated, cleaned, clean_report)
        rows.counts = {name: count for name, count in published.counts.items() if name != "new"}
        by_source = published.details["by_source"]
        rows.sources = by_source
        rows.published = True
        if not published.counts["new"] + published.counts["superseded"]:
            raise Skipped("no new reviews")

    def label(self) -> None:
        """DAG reviews_label, without waiting for people."""
        if self._has_failed("ingest"):
            raise Skipped("the step ingest has failed")
        selected = self.call("select", label_stages.select)
        shards: Any = selected.details["shards"]
        annotated = [self.call(_shard("annotate", shard), label_stages.annotate, selected, shard) for shard in shards]
        collected = self.call("collect", review_stages.collect, selected, annotated)
        spent = {"reviews_asked": selected.counts["pending"], "spent": collected.details["costs"]}
        self.report.votes = VotesReport.model_validate(collected.counts | collected.details | spent)
        labelled = self.call("aggregate", label_stages.aggregate, selected, annotated)
        by_class = {"by_class": labelled.details["labels_by_class"]}
        self.report.labels = LabelsReport.model_validate(labelled.counts | labelled.details | by_class)
        if not labelled.counts["changed"]:
            raise Skipped("no label changed")

    def retrain(self) -> None:
        """DAG reviews_retrain; nobody can be asked here, so where a person has to agree nothing is promoted."""
        settings = self.settings
        champion = champion_of(settings)
        self.report.champion = ChampionReport(before=champion, after=champion)
        planned = self.call("plan_synthesis", synthesize_stages.plan_synthesis)
        written = [
            self.call(f"synthesize [{category}]", synthesize_stages.synthesize, planned, category=category)
            for category in synthesize_stages.thin_classes(planned)
        ]
        dataset = self.call("build_dataset", train_stages.build_dataset, written)
        not_written: Any = dataset.details["not_written"]
        self.report.not_written = not_written
        trained = [
            self.call(f"{task} [{name}]", train_stages.train, dataset, candidate=name)
            for task, encoders in (("train", False), ("finetune", True))
            for name in train_stages.candidate_names(settings, encoders=encoders)
        ]
        self.report.candidates = _candidates(trained)
        evaluated = self.call("evaluate", train_stages.evaluate, dataset, trained)
        self.report.candidates = _candidates(trained, evaluated)
        gated = self.call("gate", train_stages.gate, evaluated)
        self.report.candidates = _candidates(trained, evaluated, gated)
        reason = self._promote(gated)
        self.call("retire", promotion_stages.retire, who=self._who)
        if reason:
            raise Skipped(reason)

    def _promote(self, gated: Manifest) -> str:
        """Promote what passed; empty, or why nothing was promoted."""
        if promotion_stages.needs_person(self.settings, gated):
            challenger: Any = gated.details["challenger"]
            return (
                f"version {challenger['version']} ({challenger['candidate']}) passed the gate and waits for a person "
                f"(REVIEWCLF_REGISTRY__APPROVAL): `reviewclf promote {challenger['version']} --reason ...`"
            )
        promoted = self.call("promote", promotion_stages.promote, gated, who=self._who)
        if self.report.champion is not None:
            self.report.champion.after = str(promoted.details["champion"]) if promoted.details["champion"] else None
        return "" if promoted.details["promoted"] else f"nothing promoted: {promoted.details['reason']}"

    def score(self) -> None:
        """DAG reviews_score."""
        selected = self.call("select", score_stages.select)
        if "skipped" in selected.details:
            raise Skipped(str(selected.details["skipped"]))
        shards: Any = selected.details["shards"]
        scored = [self.call(_shard("score", shard), score_stages.score, selected, shard=shard) for shard in shards]
        published = self.call("publish", score_stages.publish, selected, scored)
        self.report.scored = ScoredReport.model_validate(published.counts)
        watched = self.call("monitor", monitor_stages.monitor, published)
        self.report.scored = ScoredReport.model_validate(published.counts | watched.details)

    def maintain(self) -> None:
        """DAG reviews_maintain."""
        self.call("maintain", maintain_stages.maintain)


STEPS: dict[str, Callable[[Night], None]] = {
    "ingest": Night.ingest,
    "label": Night.label,
    "retrain": Night.retrain,
    "score": Night.score,
    "maintain": Night.maintain,
}


def run_night(settings: Settings, *, who: str, console: Console, steps: Sequence[str] = tuple(STEPS)) -> NightReport:
    """Run one night: the stages of the DAGs, in their order, in this process.

    A step depends on those before it as the DAGs do: no labels where ingest has failed; a retrain and a scoring all the same.
    Nothing is tried again here, as every stage can be run again at any time.

    Parameters
    ----------
    settings : Settings
    who : str
        Recorded in the history of promotions; another one each night, as the same one is told the same answer again.
    console : Console
        Takes one line for each finished task.
    steps : sequence of str
        Which of :data:`STEPS` to do; they are done in the DAGs' order.

    Returns
    -------
    NightReport
        ``failed`` where one of the DAGs would have failed.
    """
    quieten_libraries()
    night = Night(settings, who=who, console=console)
    for name, work in STEPS.items():
        if name in steps:
            night.run_step(name, work)
    return night.report


def champion_of(settings: Settings) -> str | None:
    """Number of the version that production follows; the tracking database is created where it is a file that is missing."""
    from reviewclf.registry.model import aliases
    from reviewclf.registry.tracking import Tracker

    return aliases(Tracker(settings.tracking_uri)).get(CHAMPION)


def _shard(task: str, shard: Any) -> str:
    return f"{task} [{int(shard['shard']) + 1} of {shard['shards']}]"


def _refused(settings: Settings, *manifests: Manifest) -> dict[str, dict[str, int]]:
    """Rows that were refused, by source and reason."""
    keys = [key for manifest in manifests for key in manifest.keys("quarantine")]
    found: dict[str, Counter[str]] = {}
    for row in Store(settings.store_uri).iter_rows(keys, ["source", "reason"]):
        found.setdefault(row["source"], Counter())[row["reason"]] += 1
    return {source: dict(reasons) for source, reasons in found.items()}


def _candidates(
    trained: Sequence[Manifest], evaluated: Manifest | None = None, gated: Manifest | None = None
) -> list[CandidateReport]:
    """Every candidate with its figures and its verdict, as far as the stages have come."""
    figures: Any = [] if evaluated is None else evaluated.details["candidates"]
    verdicts: Any = {} if gated is None else gated.details["verdicts"]
    by_name = {row["candidate"]: row for row in figures}
    gold_rows = 0 if evaluated is None else evaluated.counts["gold_rows"]
    reports = []
    for manifest in trained:
        name = str(manifest.details["candidate"])
        measured, verdict = by_name.get(name, {}), verdicts.get(name, {})
        judged = {"gate": verdict.get("verdict", ""), "reason": str(verdict.get("reason") or _untrained(manifest))}
        seconds = measured.get("seconds_per_example_p95")
        row = {**measured, **verdict, **judged, "candidate": name, "gold_rows": gold_rows, "seconds_per_example": seconds}
        reports.append(CandidateReport.model_validate(row))
    return reports


def _untrained(manifest: Manifest) -> str:
    """Why a candidate could not be trained; empty where it was."""
    what = "not trained, has failed" if manifest.details.get("failed") else "skipped"
    return f"{what}: {manifest.details['skipped']}" if manifest.details.get("skipped") else ""
