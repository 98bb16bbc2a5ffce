"""The gate: rules as data over measured evidence, and a report that lists every one of them. Pure.

"Not worse than the champion" is a one-sided test by paired bootstrap on the same gold rows: a candidate is refused when the
share of draws in which it loses more than the margin is larger than the confidence asked for. With the margin 0 a candidate
that is as good as the champion is therefore refused in about (1 - confidence) of the nights, which costs a night and
nothing else, whereas a rule that wanted proof of being no worse would refuse most equal ones. What it sees depends on the rows
on which only one of the two is right: retrains of one candidate on real reviews differ so in 1.5 to 4.5% of 420 gold rows, and
a loss of 2 points on 400 rows is then refused in about three nights of four (at 8%: in more than half).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from reviewclf.errors import GateError
from reviewclf.evaluation import Difference
from reviewclf.evaluation.base import Result
from reviewclf.settings import GateSettings

Operator = Literal[">=", "<=", ">", "<"]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
RECALL = "recall/"


class Measure(Result):
    """A measured value, on how many reviews or calls, and what there is to say about it; None: it could not be measured."""

    value: float | None
    n: int
    note: str = ""


class _Judged(Result):
    """What is judged, and what it is held against.

    Attributes
    ----------
    candidate : str
        Its name.
    champion : str or None
        Version it was held against; None: there is no champion.
    dataset, gold : str or None
        Digests behind the figures.
    """

    candidate: str
    champion: str | None = None
    dataset: str | None = None
    gold: str | None = None


class Evidence(_Judged):
    """What was measured about one candidate.

    Attributes
    ----------
    measures : dict of str to Measure
        By name: ``gold_rows``, ``weighted_f1``, ``macro_f1``, ``accuracy``, ``ece``, ``recall/<category>`` on gold;
        ``seconds_per_example``; ``model_mib``; ``gold_age_days``; ``leak_check`` (1: passed); ``not_worse_than_champion``
        (share of draws). What was not measured may be left out.
    """

    measures: dict[str, Measure]


class _Limit(Result):
    """A rule's name, unique in a gate, what is measured, in words, and what has to hold: ``value comparison limit``."""

    rule: str
    description: str
    comparison: Operator
    limit: float


class Rule(_Limit):
    """``measure comparison limit`` has to hold.

    Attributes
    ----------
    measure : str
        Name in ``Evidence.measures``.
    without_champion : bool
        Whether the rule passes, saying so, when there is no champion.
    """

    measure: str
    without_champion: bool = False


class RuleResult(_Limit):
    """One rule's verdict: ``value comparison limit`` held or did not."""

    value: float | None
    n: int
    passed: bool
    note: str = ""


class GateReport(_Judged):
    """All rules for one candidate; `passed` only when every one of them did."""

    passed: bool
    rules: tuple[RuleResult, ...]

    @property
    def reason(self) -> str:
        """One line for people: ``passed``, or which rules failed and by what."""
        failed = [
            f"{rule.rule} {'unknown' if rule.value is None else f'{rule.value:.4g}'} (needs {rule.comparison} {rule.limit:g})"
            for rule in self.rules
            if not rule.passed
        ]
        return "passed" if not failed else "failed: " + ", ".join(failed)


def rules_of(limits: GateSettings, classes: Mapping[str, int]) -> tuple[Rule, ...]:
    """The rules that the settings ask for.

    Parameters
    ----------
    limits : GateSettings
        A limit that is None makes no rule.
    classes : mapping of str to int
        Gold rows by category, in the order wanted; categories with fewer than ``min_class_rows`` get no floor.

    Raises
    ------
    GateError
        A rule or a floor of the settings cannot be used; the message names it.
    """
    percent = f"{limits.confidence:.0%}"
    loss = f"at most {limits.margin:g} below" if limits.margin else "not below"
    rules = [
        _rule("gold_rows", "reviews labelled by people to judge by", ">=", limits.min_gold_rows),
        _rule("weighted_f1", "weighted F1 on gold", ">=", limits.min_weighted_f1),
        Rule(
            rule="not_worse_than_champion",
            description=f"share of paired bootstrap draws in which its weighted F1 is {loss} the champion's, on the same gold "
            f"reviews; refused when it is {percent} sure to be lower",
            measure="not_worse_than_champion",
            comparison=">=",
            limit=round(1 - limits.confidence, 10),
            without_champion=True,
        ),
        _rule("seconds_per_example", "p95 of seconds for one review on the serving path", "<", limits.max_seconds_per_example),
        _rule("leak_check", "its training set shares no near-duplicate with gold (1: passed)", ">=", 1.0),
    ]
    rules += _floors(limits, classes)
    for name, description, limit in (
        ("ece", "calibration error on gold", limits.max_ece),
        ("model_mib", "size of the model's files in MiB", limits.max_model_mib),
        ("gold_age_days", "days since the newest gold review was written", limits.max_gold_age_days),
    ):
        if limit is not None:
            rules.append(_rule(name, description, "<=", limit))
    for number, given in enumerate(limits.rules, start=1):
        measure, comparison, limit = (given.get(name) for name in ("measure", "comparison", "limit"))
        named = {"rule": f"{measure} {comparison} {limit}", "description": f"{measure}, by a rule of REVIEWCLF_GATE__RULES"}
        try:
            rules.append(Rule.model_validate({**named, **given}))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise GateError(f"REVIEWCLF_GATE__RULES, rule {number}: {wrong}; found {given}") from error
    return tuple(rules)


def apply_rules(evidence: Evidence, rules: Sequence[Rule]) -> GateReport:
    """Apply every rule to one candidate's evidence.

    Parameters
    ----------
    evidence : Evidence
        What was measured; an unknown value fails its rule.
    rules : sequence of Rule
        All of them have to pass.

    Raises
    ------
    GateError
        No rules, two of one name, a limit that is no number, or a measure that nobody takes: a gate like that would pass what
        it should not.
    """
    names = [rule.rule for rule in rules]
    if not rules or len(set(names)) != len(names):
        raise GateError(f"the gate needs rules of different names, got {names}")
    for rule in rules:
        if not math.isfinite(rule.limit):
            raise GateError(f"rule {rule.rule!r}: the limit has to be a finite number, got {rule.limit}")
    results = tuple(_apply(rule, evidence) for rule in rules)
    judged = evidence.model_dump(exclude={"measures"})
    return GateReport(**judged, passed=all(result.passed for result in results), rules=results)


def comparison_measure(difference: Difference, *, champion: str, n: int, note: str = "") -> Measure:
    """The measure ``not_worse_than_champion`` of a paired bootstrap on `n` gold rows."""
    said = (
        f"weighted F1 {difference.value:+.3f} against version {champion} "
        f"(95% interval {difference.low:+.3f} to {difference.high:+.3f})"
    )
    return Measure(value=difference.p_not_worse, n=n, note=f"{said}; {note}" if note else said)


def _rule(name: str, description: str, comparison: Operator, limit: float) -> Rule:
    return Rule(rule=name, description=description, measure=name, comparison=comparison, limit=float(limit))


def _floors(limits: GateSettings, classes: Mapping[str, int]) -> list[Rule]:
    unknown = [name for name in limits.min_class_recalls if name not in classes]
    if unknown:
        raise GateError(
            f"REVIEWCLF_GATE__MIN_CLASS_RECALLS: not in the taxonomy: {', '.join(unknown)}; there are {', '.join(classes)}"
        )
    rules = []
    for name, rows in classes.items():
        floor = limits.min_class_recalls.get(name, limits.min_class_recall)
        if floor is not None and rows >= limits.min_class_rows:
            rules.append(_rule(f"{RECALL}{name}", f"recall of «{name}» on gold", ">=", floor))
    return rules


def _apply(rule: Rule, evidence: Evidence) -> RuleResult:
    result: dict[str, Any] = rule.model_dump(exclude={"measure", "without_champion"})
    if rule.without_champion and evidence.champion is None:
        return RuleResult(**result, value=None, n=0, passed=True, note="there is no champion yet")
    gold_rows = evidence.measures.get("gold_rows")
    no_gold = gold_rows is not None and not gold_rows.value
    measure = evidence.measures.get(rule.measure)
    if measure is None:
        if not no_gold:
            known = ", ".join(sorted(evidence.measures))
            raise GateError(f"rule {rule.rule!r}: nobody measures {rule.measure!r}; there are {known}")
        measure = Measure(value=None, n=0, note="cannot be measured without gold")
    value = measure.value
    passed = value is not None and math.isfinite(value) and _COMPARE[rule.comparison](value, rule.limit)
    return RuleResult(**result, value=value, n=measure.n, passed=passed, note=measure.note)
