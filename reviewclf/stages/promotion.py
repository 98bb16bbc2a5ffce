"""Promotion, rollback and retirement as stages. What they change is the registry, so their answers are never cached."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from reviewclf.errors import StaleVerdictError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.registry.runs import tracker_of
from reviewclf.settings import Settings
from reviewclf.stages.gate import gate
from reviewclf.storage import Store

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)

APPROVE, REJECT = "Promote", "Reject"
_REJUDGED = 5


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
        ``details``: ``promoted`` (a new champion?), ``champion``, ``previous``, ``reason``, ``gate_report``.
    """
    tracker = tracker_of(settings)
    promoted = _decided(settings, tracker, gated, who=who, answer=answer)
    _remember(tracker, gated, promoted)
    return promoted


def _decided(settings: Settings, tracker: Tracker, gated: Manifest, *, who: str, answer: Mapping[str, Any] | None) -> Manifest:
    challenger: Any = gated.details["challenger"]
    if challenger is None:
        reason = str(gated.details.get("barred") or "no candidate passed the gate")
        return _unchanged(tracker, gated, reason)
    version = str(challenger["version"])
    why = f"{challenger['candidate']} passed the gate ({gated.digest[:8]})"
    by = who
    if settings.registry.approval and not _is_champion(tracker, version):
        agreed, by, said = _heard(answer, who)
        if not agreed:
            return _refused(tracker, gated, version, by=by, said=said, key=f"{who}:{version}" if who else "")
        why = f"{why}; approved{': ' + said if said else ''}"
    return _promoted(settings, tracker, gated, reason=why, who=by, key=f"{who}:{version}" if who else "")


def needs_person(settings: Settings, gated: Manifest) -> bool:
    """Whether a person has to agree before the challenger of a gate becomes champion."""
    challenger: Any = gated.details["challenger"]
    if challenger is None or challenger["version"] == gated.details["champion"]:
        return False
    return settings.registry.approval


def promote_version(settings: Settings, version: str, *, reason: str, who: str, force: bool = False, key: str = "") -> Manifest:
    """Promote a version by hand. Raises GateError when it has not passed the gate and `force` was not given."""
    from reviewclf.promotion.aliases import promote as move

    tracker = tracker_of(settings)
    promotion = move(tracker, version, reason=reason, who=who, force=force, key=key)
    return _manifest(
        {"version": version},
        promotion,
        reason=reason if promotion.changed else f"version {promotion.champion} is champion already",
    )


def rollback(settings: Settings, *, reason: str, who: str, key: str = "") -> Manifest:
    """Make `previous` the champion again."""
    from reviewclf.promotion.aliases import rollback as move

    return _manifest({}, move(tracker_of(settings), reason=reason, who=who, key=key), reason=reason)


def retire(settings: Settings, *, who: str = "", dry_run: bool = False) -> Manifest:
    """Remove versions that are older and more than ``REVIEWCLF_REGISTRY__KEEP_*`` allow; those with an alias stay."""
    from reviewclf.promotion.retention import retire as remove

    limits = settings.registry
    gone = remove(
        tracker_of(settings), keep_versions=limits.keep_versions, keep_days=limits.keep_days, who=who, dry_run=dry_run
    )
    logger.info("%s: %s", "would be retired" if dry_run else "retired", ", ".join(gone) or "none")
    details: dict[str, JsonValue] = {"versions": list(gone), "dry_run": dry_run}
    return Manifest(stage="retire", digest=digest_of(details), counts={"retired": len(gone)}, details=details)


def _promoted(settings: Settings, tracker: Tracker, gated: Manifest, *, reason: str, who: str, key: str) -> Manifest:
    from reviewclf.promotion.aliases import barred
    from reviewclf.promotion.aliases import promote as move

    for _ in range(_REJUDGED):
        challenger: Any = gated.details["challenger"]
        if challenger is None:
            return _unchanged(tracker, gated, str(gated.details.get("barred") or "no candidate passed the gate"))
        version = str(challenger["version"])
        stopped = None if _is_champion(tracker, version) else barred(tracker, version)
        if stopped is not None:
            return _unchanged(tracker, gated, f"version {version} is not promoted: {stopped}")
        try:
            against: Any = gated.details["champion"]
            promotion = move(tracker, version, reason=reason, who=who, key=key, against=against)
        except StaleVerdictError as stale:
            again = None if settings.registry.approval else _judged_again(settings, tracker, gated, version)
            if again is None:
                return _unchanged(tracker, gated, str(stale))
            logger.warning("%s; judged anew", stale)
            gated = again
            continue
        return _manifest(
            {"gated": gated.digest},
            promotion,
            reason=reason if promotion.changed else f"version {promotion.champion} is champion already",
            candidate=challenger["candidate"],
            gate_report=gated.details.get("gate_report"),
        )
    return _unchanged(tracker, gated, "the champion changed again and again while this was judged; the next retrain tries anew")


def _remember(tracker: Tracker, gated: Manifest, promoted: Manifest) -> None:
    """What became of the retrain, on its run: the leaderboard shows it."""
    from reviewclf.registry.tracking import OUTCOME_TAG

    details = promoted.details
    said = f"version {details['champion']} was promoted" if details["promoted"] else f"nothing promoted: {details['reason']}"
    tracker.log(str(gated.details["retrain_run"]), tags={OUTCOME_TAG: said[:5000]})


def _judged_again(settings: Settings, tracker: Tracker, gated: Manifest, version: str) -> Manifest | None:
    """The verdict against the new champion; None where the challenger's data are no newer than the champion's."""
    from reviewclf.registry.model import aliases, dataset_of

    champion = aliases(tracker).get("champion")
    mine, theirs = (
        None if number is None else tracker.retrained_at(dataset_of(tracker, number)) for number in (version, champion)
    )
    evaluated = Store(settings.store_uri).manifest("evaluate", str(gated.details["evaluated"]))
    if evaluated is None or mine is None or (champion is not None and (theirs is None or mine <= theirs)):
        return None
    return gate(settings, evaluated)


def _is_champion(tracker: Tracker, version: str) -> bool:
    from reviewclf.registry.model import aliases

    return aliases(tracker).get("champion") == version


def _heard(answer: Mapping[str, Any] | None, who: str) -> tuple[bool, str, str]:
    """Whether a person agreed, who it was, and what was said."""
    if answer is None or not answer.get("responded_by_user"):
        return False, "", ""
    user = answer["responded_by_user"]
    name = str(user.get("name") or user.get("id"))
    said = str((answer.get("params_input") or {}).get("reason") or "").strip()
    return APPROVE in answer.get("chosen_options", []), f"{name} ({who})" if who else name, said


def _refused(tracker: Tracker, gated: Manifest, version: str, *, by: str, said: str, key: str) -> Manifest:
    from reviewclf.promotion.aliases import refuse

    if by:
        refuse(tracker, version, reason=said, who=by, key=key)
        return _unchanged(tracker, gated, f"version {version} was rejected by {by}{': ' + said if said else ''}")
    reason = "nobody answered in time"
    refuse(tracker, version, reason=reason, who="", action="expire", key=key)
    return _unchanged(tracker, gated, f"version {version} is not promoted: {reason} (REVIEWCLF_REGISTRY__APPROVAL)")


def _unchanged(tracker: Tracker, gated: Manifest, reason: str) -> Manifest:
    from reviewclf.registry.model import aliases

    logger.info("nothing promoted: %s", reason)
    details: dict[str, Any] = {
        "promoted": False,
        "champion": aliases(tracker).get("champion"),
        "reason": reason,
        "gate_report": gated.details.get("gate_report"),
    }
    return Manifest(
        stage="promote",
        digest=digest_of({"gated": gated.digest, **details}),
        inputs={"gated": gated.digest},
        counts={"promoted": 0},
        details=details,
    )


def _manifest(inputs: dict[str, JsonValue], promotion: Any, *, reason: str, **more: Any) -> Manifest:
    details = {
        "promoted": promotion.changed,
        "champion": promotion.champion,
        "previous": promotion.previous,
        "reason": reason,
        **more,
    }
    return Manifest(
        stage="promote",
        digest=digest_of({**inputs, **details}),
        inputs=inputs,
        counts={"promoted": int(promotion.changed)},
        details=details,
    )
