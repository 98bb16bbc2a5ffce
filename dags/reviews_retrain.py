"""Train the candidates, compare them, promote the best.

    asset reviews_labelled or reviews_drifted, or nightly → plan_synthesis → synthesize (a task per thin class) → build_dataset
        → train, finetune (a task per candidate) → evaluate → gate → [ask_person] → promote → asset review_classifier → retire

Runs when labels changed, when the watch over production found drift, and every night at 04:00 in Moscow: have reviews of
thin classes written where somebody can write them (`REVIEWCLF_AUGMENTATION__BACKEND`; else the retrain goes on without),
build a training set that shares nothing with the gold reviews and holds as many synthetic ones as help, train every
candidate of `REVIEWCLF_CANDIDATES` (at most as many at once as the pool `training` has slots), compare them on gold in
MLflow, hold them against the gate and the champion, and move the alias `champion` to the best that passed. With
`REVIEWCLF_REGISTRY__APPROVAL=true` a person has to agree first, under Required Actions; no answer promotes nothing. When
nothing is promoted, `promote` ends as skipped; the log of `gate` says which rule was not met and where its report lies. In
the end old versions without an alias are retired.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import AssetOrTimeSchedule, Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from pydantic import JsonValue

from reviewclf.orchestration.alerts import alert_if_budget_spent, report_failure
from reviewclf.orchestration.flow import (
    REVIEW_CLASSIFIER,
    REVIEWS_DRIFTED,
    REVIEWS_LABELLED,
    TASK_DEFAULTS,
    alert_if_not_written,
    alert_if_refused,
    announce_champion,
    done_within,
    has_attempts_left,
    nightly,
    run_stage,
    skip_if_told,
)
from reviewclf.orchestration.pods import pod
from reviewclf.settings import load_settings


@task
def gate(evaluated: JsonValue) -> JsonValue:
    """Hold every candidate against the gate's rules and the champion; the log says where the report lies."""
    from reviewclf.stages import gate as stages

    gated = run_stage(stages.gate, evaluated)
    alert_if_refused(gated)
    return gated  # type: ignore[no-any-return]


@task.short_circuit(ignore_downstream_trigger_rules=False)
def wait_for_person(gated: JsonValue) -> bool:
    """Go by way of a person only when REVIEWCLF_REGISTRY__APPROVAL says so and there is a challenger."""
    from reviewclf.manifest import Manifest
    from reviewclf.stages import promotion as stages

    return stages.needs_person(load_settings(), Manifest.model_validate(gated))


@task(outlets=[REVIEW_CLASSIFIER], trigger_rule=TriggerRule.NONE_FAILED)
def promote(gated: JsonValue) -> JsonValue:
    """Move the alias `champion` to the version that passed; skipped when none did, or it is champion already."""
    from reviewclf.stages import promotion as stages

    # A retried task of this run is told again what its first attempt did.
    context = get_current_context()
    answer = context["ti"].xcom_pull(task_ids="ask_person")
    promoted = run_stage(stages.promote, gated, who=f"airflow run {context['run_id']}", answer=answer)
    return announce_champion(promoted)


# A night without a promotion ends `promote` as skipped.
@task(trigger_rule=TriggerRule.NONE_FAILED)
def retire(promoted: JsonValue) -> JsonValue:
    """Remove versions and models that are older and more than REVIEWCLF_REGISTRY__KEEP_* allow; never one with an alias."""
    from reviewclf.stages import promotion as stages

    return run_stage(stages.retire, who=f"airflow run {get_current_context()['run_id']}")


@dag(
    schedule=AssetOrTimeSchedule(timetable=nightly("0 4 * * *"), assets=(REVIEWS_LABELLED | REVIEWS_DRIFTED)),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    deadline=done_within(load_settings().alerts.retrain_hours),
    default_args=TASK_DEFAULTS,
    on_failure_callback=report_failure,
    tags=["reviewclf", "training"],
    doc_md=__doc__,
)
def reviews_retrain() -> None:
    """Go from the asset reviews_labelled to the asset review_classifier."""

    @task
    def candidates() -> JsonValue:
        """Name the candidates that any worker can train, so that each is trained by a task of its own."""
        from reviewclf.stages import train as stages

        return stages.candidate_names(load_settings(), encoders=False)

    @task
    def encoders() -> JsonValue:
        """Name the candidates that fine-tune an encoder."""
        from reviewclf.stages import train as stages

        return stages.candidate_names(load_settings(), encoders=True)

    @task
    def plan_synthesis() -> JsonValue:
        """Find the classes that are thin, and how many synthetic reviews to try for each."""
        from reviewclf.stages import synthesize as stages

        planned = run_stage(stages.plan_synthesis)
        details = planned["details"]
        alert_if_not_written([details["skipped"]] if details.get("failed") else [])
        return planned  # type: ignore[no-any-return]

    @task
    def thin_classes(planned: JsonValue) -> JsonValue:
        """Name the thin classes, so that a task of its own writes for each; with none of them `synthesize` is skipped."""
        from reviewclf.manifest import Manifest
        from reviewclf.stages import synthesize as stages

        return stages.thin_classes(Manifest.model_validate(planned))  # type: ignore[return-value]

    @task(
        pool="annotation",
        execution_timeout=timedelta(hours=6),
        map_index_template="{{ task.op_kwargs['category'] }}",
        doc_md="Have reviews of one thin class written, and keep those that pass every filter; the log shows what each rule "
        "refused.",
    )
    def synthesize(planned: JsonValue, category: str) -> JsonValue:
        from reviewclf.stages import synthesize as stages

        return run_stage(stages.synthesize, planned, category=category, retry=has_attempts_left())

    # Classes may all have rows enough, and nobody may be there to write: that costs the night nothing else.
    @task(
        trigger_rule=TriggerRule.ALL_DONE,
        execution_timeout=timedelta(hours=4),
        executor_config=pod(cpu="2", memory="6Gi"),
    )
    def build_dataset(synthesized: JsonValue) -> JsonValue:
        """Split the labelled reviews into train and validation, free of gold and its near-duplicates; add what helps."""
        from reviewclf.stages import train as stages

        written: list[Any] = list(synthesized or [])  # type: ignore[arg-type]
        reports = [manifest["details"]["report"] for manifest in written if "report" in manifest["details"]]
        stopped = [f"{report['category']}: {report['stopped']}" for report in reports if report["stopped"]]
        alert_if_budget_spent(stopped)
        built = run_stage(stages.build_dataset, written)
        alert_if_not_written([f"{category}: {reason}" for category, reason in built["details"]["not_written"].items()])
        return built  # type: ignore[no-any-return]

    @task(
        pool="training",
        execution_timeout=timedelta(hours=12),
        executor_config=pod(cpu="2", memory="6Gi"),
        map_index_template="{{ task.op_kwargs['candidate'] }}",
        # Airflow takes the documentation of mapped tasks from here, not from the function.
        doc_md="Train one candidate and log it to MLflow as a child run of this retrain.",
    )
    def train(dataset: JsonValue, candidate: str) -> JsonValue:
        from reviewclf.stages import train as stages

        return skip_if_told(run_stage(stages.train, dataset, candidate=candidate, retry=has_attempts_left()))

    @task(
        pool="gpu",
        queue="gpu" if load_settings().training.gpu else "default",
        execution_timeout=timedelta(hours=12),
        executor_config=pod(cpu="4", memory="16Gi", gpu=load_settings().training.gpu, image=load_settings().training.gpu_image),
        map_index_template="{{ task.op_kwargs['candidate'] }}",
        doc_md="Fine-tune one encoder and log it to MLflow as a child run of this retrain; a killed attempt goes on from its "
        "last checkpoint. Skipped, with the reason, where the pretrained encoder cannot be had.",
    )
    def finetune(dataset: JsonValue, candidate: str) -> JsonValue:
        from reviewclf.stages import train as stages

        return skip_if_told(run_stage(stages.train, dataset, candidate=candidate, retry=has_attempts_left()))

    # A candidates file may name only linear classifiers, or only encoders; one that fails costs the others nothing. Without any
    # the stage fails. Not ALL_DONE_MIN_ONE_SUCCESS, with which Airflow skips a task as soon as one before it was skipped.
    @task(trigger_rule=TriggerRule.ALL_DONE, executor_config=pod(cpu="2", memory="6Gi"))
    def evaluate(dataset: JsonValue, trained: JsonValue, finetuned: JsonValue) -> JsonValue:
        """Score every candidate on the gold reviews: F1 with intervals, per class, calibration, seconds per example."""
        from reviewclf.stages import train as stages

        if dataset is None:
            raise AirflowFailException("there is no training set: build_dataset has failed, and its log says why")
        return run_stage(stages.evaluate, dataset, [*(trained or []), *(finetuned or [])])  # type: ignore[misc]

    ask_person = HITLOperator(
        task_id="ask_person",
        subject="Promote {{ ti.xcom_pull(task_ids='gate')['details']['challenger']['candidate'] }}, "
        "version {{ ti.xcom_pull(task_ids='gate')['details']['challenger']['version'] }}?",
        body="{{ ti.xcom_pull(task_ids='gate')['details']['summary'] }}\n\n"
        "[Gate report]({{ ti.xcom_pull(task_ids='gate')['details']['gate_report'] }})",
        options=["Promote", "Reject"],
        defaults=["Reject"],
        params={"reason": Param("", type=["null", "string"], title="Reason", description="Kept in the history.")},
        response_timeout=timedelta(hours=load_settings().registry.approval_hours),
        doc_md="Ask a person whether the challenger shall become champion; without an answer in time it does not.",
    )

    planned = plan_synthesis()
    dataset = build_dataset(synthesize.partial(planned=planned).expand(category=thin_classes(planned)))
    trained = train.partial(dataset=dataset).expand(candidate=candidates())
    finetuned = finetune.partial(dataset=dataset).expand(candidate=encoders())
    gated = gate(evaluate(dataset, trained, finetuned))
    promoted = promote(gated)
    wait_for_person(gated) >> ask_person >> promoted
    retire(promoted)


reviews_retrain()
