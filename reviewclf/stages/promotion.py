"""Promotion, rollback and retirement as stages. What they change is the registry, so their answers are never cached."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from reviewclf.errors import StaleVerdictError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.registry import CHAMPION, PREVIOUS
from reviewclf.settings import Settings
from reviewclf.stages.gate import gate
from reviewclf.store import Store

if TYPE_CHECKING:
    from reviewclf.promotion.history import History, Promotion

logger = logging.getLogger(__name__)

APPROVE = "Promote"
_VERDICTS = 5


def promote(settings: Settings, gated: Manifest, *, who: str = "", answer: Mapping[str, Any] | None = None) -> Manifest:
    """Make the challenger the champion; nothing happens when there is none, a person said no, or it is champion already.

    Where somebody else became champion since the verdict, a challenger from a newer dataset is judged anew against that one;
    one from an older or the same dataset is not promoted over it.

    Parameters
    ----------
    gated : Manifest
        From :func:`reviewclf.stages.gate.gate`.
    who : str
        Recorded in the history. The same `who` repeating the call (a retried task) gets the same answer again.
    answer : mapping, optional
        What a person said, as Airflow's human-in-the-loop operator hands it on: ``chosen_options``, ``params_input`` (with
        ``reason``), ``responded_by_user`` (null: nobody did, in time). Needed where ``REVIEWCLF_REGISTRY__APPROVAL`` is set.

    Returns
    -------
    Manifest
        ``details``: ``promoted`` (a new champion?), ``champion``, ``previous``, ``candidate``, ``reason``, ``gate_report``.
    """
    from reviewclf.promotion.history import History
    from reviewclf.registry.tracking import OUTCOME_TAG

    history = History.of(settings)
    judged, promotion, reason = _promote_challenger(settings, history, gated, who=who, answer=answer)
    challenger: Any = judged.details["challenger"] or {}
    promoted = _manifest(
        promotion,
        reason,
        {"gated": gated.digest},
        gate_report=gated.details.get("gate_report"),
        candidate=challenger.get("candidate"),
    )
    logger.info("%s: %s", "promoted" if promotion.changed else "nothing promoted", reason)
    # The leaderboard shows what became of the retrain.
    said = f"version {promotion.champion} was promoted" if promotion.changed else f"nothing promoted: {reason}"
    history.tracker.log(str(gated.details["retrain_run"]), tags={OUTCOME_TAG: said[:5000]})
    return promoted


def needs_person(settings: Settings, gated: Manifest) -> bool:
    """Whether a person has to agree before the challenger of a gate becomes champion."""
    challenger: Any = gated.details["challenger"]
    return bool(settings.registry.approval and challenger and challenger["version"] != gated.details["champion"])


def promote_version(settings: Settings, version: str, *, reason: str, who: str, force: bool = False, key: str = "") -> Manifest:
    """Promote a version by hand. Raises GateError when it has not passed the gate and `force` was not given."""
    from reviewclf.promotion import aliases
    from reviewclf.promotion.history import History

    promotion = aliases.promote(History.of(settings), version, reason=reason, who=who, force=force, key=key)
    return _manifest(promotion, reason if promotion.changed else _is_champion(version), {"version": version})


def rollback(settings: Settings, *, reason: str, who: str, key: str = "") -> Manifest:
    """Make `previous` the champion again."""
    from reviewclf.promotion import aliases
    from reviewclf.promotion.history import History

    return _manifest(aliases.rollback(History.of(settings), reason=reason, who=who, key=key), reason, {})


def retire(settings: Settings, *, who: str = "", dry_run: bool = False) -> Manifest:
    """Remove versions that are older and more than ``REVIEWCLF_REGISTRY__KEEP_*`` allow; those with an alias stay."""
    from reviewclf.promotion import retention
    from reviewclf.promotion.history import History

    limits = settings.registry
    gone = retention.retire(
        History.of(settings), keep_versions=limits.keep_versions, keep_days=limits.keep_days, who=who, dry_run=dry_run
    )
    logger.info("%s: %s", "would be retired" if dry_run else "retired", ", ".join(gone) or "none")
    details: dict[str, JsonValue] = {"versions": list(gone), "dry_run": dry_run}
    return Manifest(stage="retire", digest=digest_of(details), counts={"retired": len(gone)}, details=details)


def _promote_challenger(
    settings: Settings, history: History, gated: Manifest, *, who: str, answer: Mapping[str, Any] | None
) -> tuple[Manifest, Promotion, str]:
    """The verdict that counted in the end, what became of its challenger, and why."""
    from reviewclf.promotion import aliases

    by, approved = who, ""
    first = cast("Mapping[str, Any] | None", gated.details["challenger"])
    # One for the whole call: a retried task is told what its first attempt did, also where it judged anew. Of the run, as the
    # number of a version is given anew where MLflow was restored to a state of before it.
    key = f"{who}:{first['run_id']}" if who and first else ""
    for _ in range(_VERDICTS):
        now, challenger = _unchanged(history), cast("Mapping[str, Any] | None", gated.details["challenger"])
        if challenger is None:
            return gated, now, str(gated.details.get("barred") or "no candidate passed the gate")
        version = str(challenger["version"])
        if settings.registry.approval and now.champion != version and not approved:
            agreed, by, said = _heard(answer, who)
            if not agreed:
                return gated, now, _refuse(history, version, by, said, key)
            approved = f"; approved{said}"
        why = None if now.champion == version else aliases.barred(history, version)
        if why is not None:
            return gated, now, f"version {version} is not promoted: {why}"
        reason = f"{challenger['candidate']} passed the gate ({gated.digest[:8]}){approved}"
        against: Any = gated.details["champion"]
        try:
            promotion = aliases.promote(history, version, reason=reason, who=by, key=key, against=against)
        except StaleVerdictError as stale:
            again = None if settings.registry.approval else _judge_again(settings, history, gated, version)
            if again is None:
                return gated, _unchanged(history), str(stale)
            logger.warning("%s; judged anew", stale)
            gated = again
        else:
            return gated, promotion, reason if promotion.changed else _is_champion(version)
    return gated, _unchanged(history), "the champion changed again and again while this was judged; the next retrain tries anew"


def _refuse(history: History, version: str, by: str, said: str, key: str) -> str:
    """Record that a person said no, or that nobody answered; what became of the version, in words."""
    from reviewclf.promotion import aliases

    if by:
        aliases.refuse(history, version, reason=said.removeprefix(": "), who=by, key=key)
        return f"version {version} was rejected by {by}{said}"
    late = "nobody answered in time"
    aliases.refuse(history, version, reason=late, who="", action="expire", key=key)
    return f"version {version} is not promoted: {late} (REVIEWCLF_REGISTRY__APPROVAL)"


def _judge_again(settings: Settings, history: History, gated: Manifest, version: str) -> Manifest | None:
    """The verdict against the new champion; None where the challenger's data are no newer than the champion's."""
    from reviewclf.registry.model import dataset_of

    tracker, champion = history.tracker, _unchanged(history).champion
    mine, theirs = (number and tracker.retrain(dataset_of(tracker, number)) for number in (version, champion))
    evaluated = Store(settings.store_uri).manifest("evaluate", str(gated.details["evaluated"]))
    if evaluated is None or not mine or (champion and (not theirs or mine.info.start_time <= theirs.info.start_time)):
        return None
    return gate(settings, evaluated)


def _heard(answer: Mapping[str, Any] | None, who: str) -> tuple[bool, str, str]:
    """Whether a person agreed, who it was (empty: nobody answered), and ``: `` and what was said, where anything was."""
    if answer is None or not answer.get("responded_by_user"):
        return False, "", ""
    user = answer["responded_by_user"]
    name = str(user.get("name") or user.get("id"))
    said = str((answer.get("params_input") or {}).get("reason") or "").strip()
    return APPROVE in answer.get("chosen_options", []), f"{name} ({who})" if who else name, f": {said}" if said else ""


def _unchanged(history: History) -> Promotion:
    """The registry as it is."""
    from reviewclf.promotion.history import Promotion
    from reviewclf.registry.model import aliases

    named = aliases(history.tracker)
    return Promotion(champion=named.get(CHAMPION), previous=named.get(PREVIOUS), changed=False)


def _is_champion(version: str) -> str:
    return f"version {version} is champion already"


def _manifest(promotion: Promotion, reason: str, inputs: dict[str, JsonValue], **more: Any) -> Manifest:
    details = {**promotion.model_dump(exclude={"changed"}), "promoted": promotion.changed, "reason": reason, **more}
    return Manifest(
        stage="promote",
        digest=digest_of({**inputs, **details}),
        inputs=inputs,
        counts={"promoted": int(promotion.changed)},
        details=details,
    )
