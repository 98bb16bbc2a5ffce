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
from reviewclf.monitoring.night import ChampionReport, NightReport, ScoredReport, StepReport, TaskReport
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
        self.steps: list[StepReport] = []
        self.champion: ChampionReport | None = None
        self.scored: ScoredReport | None = None
        self._who = who
        self._results: dict[str, list[Manifest]] = {}
        self._refused: dict[str, dict[str, int]] = {}
        self._console = console

    def run_step(self, step: str, work: Callable[[Night], None]) -> None:
        """Do a step; what it raises becomes its outcome."""
        done = StepReport(step=step)
        self.steps.append(done)
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
        self._tell(step, "", done.outcome, done.seconds, done.reason)

    def _has_failed(self, step: str) -> bool:
        return any(report.step == step and report.outcome == "failed" for report in self.steps)

    def report(self) -> NightReport:
        """What there is to say by now."""
        report = NightReport.of(
            self._results,
            failed=any(step.outcome == "failed" for step in self.steps),
            steps=self.steps,
            champion=self.champion,
            scored=self.scored,
        )
        if report.rows is not None:
            report.rows.quarantine = self._refused
        return report

    def call(self, task: str, stage: Callable[..., Manifest], /, *arguments: Any, **named: Any) -> Manifest:
        """Call a stage, and keep how long it took."""
        step = self.steps[-1]
        started = time.monotonic()
        manifest = stage(self.settings, *arguments, **named)
        done = TaskReport(task=task, seconds=round(time.monotonic() - started, 3), counts=manifest.counts)
        step.tasks.append(done)
        if step.step != "score":  # it has tasks of the same names
            self._results.setdefault(task.partition(" [")[0], []).append(manifest)
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
        self._refused = _refused(settings, ingested)
        validated = self.call("validate_raw", ingest_stages.validate_raw, ingested)
        cleaned = self.call("clean", ingest_stages.clean, ingested, validated)
        self._refused = _refused(settings, ingested, cleaned)
        clean_report = self.call("validate_clean", ingest_stages.validate_clean, cleaned)
        published = self.call("publish", ingest_stages.publish, ingested, validated, cleaned, clean_report)
        if not published.counts["new"] + published.counts["superseded"]:
            raise Skipped("no new reviews")

    def label(self) -> None:
        """DAG reviews_label, without waiting for people."""
        if self._has_failed("ingest"):
            raise Skipped("the step ingest has failed")
        selected = self.call("select", label_stages.select)
        shards: Any = selected.details["shards"]
        annotated = [self.call(_shard("annotate", shard), label_stages.annotate, selected, shard) for shard in shards]
        self.call("collect", review_stages.collect, selected, annotated)
        labelled = self.call("aggregate", label_stages.aggregate, selected, annotated)
        if not labelled.counts["changed"]:
            raise Skipped("no label changed")

    def retrain(self) -> None:
        """DAG reviews_retrain; nobody can be asked here, so where a person has to agree nothing is promoted."""
        settings = self.settings
        champion = champion_of(settings)
        self.champion = ChampionReport(before=champion, after=champion)
        planned = self.call("plan_synthesis", synthesize_stages.plan_synthesis)
        written = [
            self.call(f"synthesize [{category}]", synthesize_stages.synthesize, planned, category=category)
            for category in synthesize_stages.thin_classes(planned)
        ]
        dataset = self.call("build_dataset", train_stages.build_dataset, written)
        trained = [
            self.call(f"{task} [{name}]", train_stages.train, dataset, candidate=name)
            for task, encoders in (("train", False), ("finetune", True))
            for name in train_stages.candidate_names(settings, encoders=encoders)
        ]
        evaluated = self.call("evaluate", train_stages.evaluate, dataset, trained)
        gated = self.call("gate", train_stages.gate, evaluated)
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
        if self.champion is not None:
            self.champion.after = str(promoted.details["champion"]) if promoted.details["champion"] else None
        return "" if promoted.details["promoted"] else f"nothing promoted: {promoted.details['reason']}"

    def score(self) -> None:
        """DAG reviews_score."""
        selected = self.call("select", score_stages.select)
        if "skipped" in selected.details:
            raise Skipped(str(selected.details["skipped"]))
        shards: Any = selected.details["shards"]
        scored = [self.call(_shard("score", shard), score_stages.score, selected, shard=shard) for shard in shards]
        published = self.call("publish", score_stages.publish, selected, scored)
        self.scored = ScoredReport.model_validate(published.counts)
        watched = self.call("monitor", monitor_stages.monitor, published)
        self.scored = ScoredReport.model_validate(published.counts | watched.details)

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
    return night.report()


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
