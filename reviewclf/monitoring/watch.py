"""The watch over production: what was read off a night's reviews, against the nights before and the training data.

Every signal is looked at in three windows: tonight, the last two nights and the last seven, so that a jump is seen at once and
a small or slow change, or one in a handful of reviews a night, after some nights. A signal alarms when its change is large
enough to matter *and* would come about by chance too rarely. How rarely is one setting, false alarms per year over all
signals: a night's looks (signals times windows) share that rate by Bonferroni's correction. Watching never ends, so a fixed
rate of false alarms per night is what can be promised (the average run length of control charts); spending a total error
level over the looks would make the watch blind in the end.

A window is compared with the nights before it, up to ``reference_nights``. A night that alarmed is left out for a week, or
until there is a new champion: a shift goes on being reported, and what lasts becomes the normal, so that the watch learns how
much nights differ here. Where fewer than three nights are left, the champion's training data stand in: for the input the texts
it was trained on, for its answers those to validation rows, which it was not fitted to.

**Why no library.** Looked at in November 2026. Evidently (Apache 2.0, kept up, runs beside pandas 3) compares two samples
column by column: it would bring twenty packages, among them a web framework and usage telemetry, for tests that SciPy has,
and treats every look as the first and every difference between nights as drift. NannyML (Apache 2.0) has the estimate of
:mod:`reviewclf.monitoring.estimate`, but had its last release in July 2025 and works by fixed thresholds too. alibi-detect is
under the Business Source License and needs NumPy 1; Frouros asks for versions of tqdm and SciPy that exclude ours. So the tests
are SciPy's, the embedding scikit-learn's, and our own is what none of them has: nights, windows, and a rate of false alarms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reviewclf.monitoring.readings import Lens, Readings, phrases_of, words_of
from reviewclf.monitoring.report import Signal
from reviewclf.monitoring.shift import Shift, bursts, distance, sample, share_shift, shift
from reviewclf.text import redact

Floats = NDArray[np.float64]
Group = Literal["input", "prediction", "confidence", "label"]

WINDOWS = (1, 2, 7)
FEWEST_NIGHTS = 3
# So many nights a night that alarmed is kept out of the reference.
QUARANTINE = 7
_DAYS = 365
_EXAMPLES = 3
_SHOWN = 200

# From which size a change matters, in the unit that the description names.
LIMITS = {
    "input/length": 0.25,
    "input/language": 0.03,
    "input/unknown_words": 0.2,
    "input/misspellings": 0.4,
    "input/embedding": 0.25,
    "input/templates": 0.02,
    "input/copies": 0.15,
    "prediction/class_shares": 0.08,
    "confidence/mean": 0.03,
    "confidence/abstentions": 0.08,
    "label/agreement": 0.08,
}


@dataclass(frozen=True)
class Night:
    """One night's reviews with all that is known of them; also stands for the training data.

    Attributes
    ----------
    readings : Readings
    texts : sequence of str
        Cleaned, as in `readings`.
    version : str
        Of the champion that answered.
    labels : sequence of str
        Its answers; of the training data those to validation rows.
    confidence : array
    abstained : array of bool
    agreed : array
        Per answer 1.0 where the label that came in later is the same, 0.0 where it is another, NaN without one.
    copies, arrivals : int
        Exact copies among all reviews that came in; 0 of 0 where that is not known.
    alarmed : bool
    """

    readings: Readings
    texts: Sequence[str]
    version: str
    labels: Sequence[str]
    confidence: Floats
    abstained: NDArray[np.bool_]
    agreed: Floats = field(default_factory=lambda: np.empty(0))
    copies: int = 0
    arrivals: int = 0
    alarmed: bool = False


class Options(NamedTuple):
    """Settings of the watch: see :class:`reviewclf.settings.MonitoringSettings`."""

    false_alarms_per_year: float = 2.0
    min_rows: int = 40
    reference_nights: int = 28


class _Finding(NamedTuple):
    """One look: size of the change in the signal's unit, p-value, words for people, and how to find examples."""

    value: float
    p_value: float
    note: str
    n: int
    reference_n: int
    score: Callable[[Night], Floats] | None = None
    # Asked for only when it alarms: naming words means reading the nights again.
    words: Callable[[], str] | None = None


class _Watched(NamedTuple):
    group: Group
    description: str
    look: Callable[[Sequence[Night], Sequence[Night], Lens], _Finding | None]
    # Whether it depends on which model answered.
    of_model: bool


def look(
    tonight: Night, past: Sequence[Night], training: Night | None, lens: Lens, options: Options | None = None
) -> tuple[Signal, ...]:
    """Look at tonight in all signals and windows.

    Parameters
    ----------
    tonight : Night
    past : sequence of Night
        Nights before, oldest first.
    training : Night, optional
        The champion's training and validation rows.
    lens : Lens
        What all of `readings` were made with.
    options : Options, optional

    Returns
    -------
    tuple of Signal
        One each, in the order of `LIMITS`; what cannot be measured has no value and says why in its note.
    """
    options = options or Options()
    rate = options.false_alarms_per_year / _DAYS
    return tuple(_signal(name, tonight, past, training, lens, options, rate) for name in LIMITS)


def _signal(
    name: str,
    tonight: Night,
    past: Sequence[Night],
    training: Night | None,
    lens: Lens,
    options: Options,
    rate: float,
) -> Signal:
    watched = _WATCHED[name]
    nights = [*past, tonight]
    if watched.of_model:
        # What another model said is no reference, and no part of a window.
        nights = [night for night in nights if night.version == tonight.version]
    found: list[tuple[int, _Finding]] = []
    why = ""
    for width in WINDOWS:
        if width > len(nights):
            break
        window = nights[-width:]
        if sum(len(night.texts) for night in window) < options.min_rows:
            why = f"fewer than {options.min_rows} reviews"
            continue
        before = _reference(nights[:-width], tonight.version)[-options.reference_nights :]
        reference = before if len(before) >= FEWEST_NIGHTS else [training] if training is not None else []
        if not reference:
            why = why or "nothing to compare with yet"
            continue
        finding = watched.look(window, reference, lens)
        if finding is not None:
            found.append((width, finding))
    limit = LIMITS[name]
    if not found:
        return Signal(
            name=name,
            group=watched.group,
            description=watched.description,
            value=None,
            limit=limit,
            n=len(tonight.texts),
            reference_n=0,
            note=why or "not known yet",
        )
    looks = len(WINDOWS) * len(LIMITS)
    corrected = [(min(1.0, finding.p_value * looks), width, finding) for width, finding in found]
    crossed = [entry for entry in corrected if entry[0] < rate and abs(entry[2].value) >= limit]
    # What is shown is tonight, unless a longer window alarms.
    p_value, width, finding = min(crossed, key=lambda entry: entry[0]) if crossed else corrected[0]
    over = "" if width == 1 else f" (last {width} nights)"
    return Signal(
        name=name,
        group=watched.group,
        description=watched.description,
        value=round(finding.value, 4),
        limit=limit,
        p_value=p_value,
        n=finding.n,
        reference_n=finding.reference_n,
        alarmed=bool(crossed),
        note=finding.note + (finding.words() if crossed and finding.words else "") + over,
        examples=_examples(nights[-width:], finding) if crossed else (),
    )


def _reference(nights: Sequence[Night], version: str) -> list[Night]:
    """Nights fit to compare with; see the module's words on nights that alarmed."""
    old = len(nights) - QUARANTINE
    return [night for place, night in enumerate(nights) if place < old or not night.alarmed or night.version != version]


def _examples(window: Sequence[Night], finding: _Finding) -> tuple[str, ...]:
    """The reviews that show the change most, the newest night first; personal data were removed in cleaning, and are again."""
    if finding.score is None:
        return ()
    shown: list[str] = []
    for night in reversed(window):
        scores = finding.score(night)
        for position in np.argsort(-scores, kind="stable")[: _EXAMPLES - len(shown)]:
            if scores[position] > 0:
                text = redact(night.texts[int(position)])
                shown.append(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
        if len(shown) >= _EXAMPLES:
            break
    return tuple(shown)


# -- the signals -----------------------------------------------------------------------------------------------------


def _mean_look(
    window: Sequence[Night],
    reference: Sequence[Night],
    read: Callable[[Night], tuple[Floats, Floats | None]],
) -> tuple[Shift, int, int] | None:
    """Shift of a mean (values, and weights or None) of the window against the reference's nights."""
    parts = [read(night) for night in window]
    values = np.concatenate([part[0] for part in parts])
    weights = None if parts[0][1] is None else np.concatenate([part[1] for part in parts if part[1] is not None])
    here = sample(values, weights, nights=len(window))
    others = [there for night in reference if (there := sample(*read(night))) is not None]
    if here is None or not others:
        return None
    return shift(here, others), here.n, sum(other.n for other in others)


def _share_look(
    window: Sequence[Night], reference: Sequence[Night], read: Callable[[Night], tuple[int, int]]
) -> tuple[Shift, int, int] | None:
    count, n = (sum(values) for values in zip(*(read(night) for night in window), strict=True))
    others = [pair for night in reference if (pair := read(night))[1] > 0]
    if n == 0 or not others:
        return None
    return share_shift(count, n, others, nights=len(window)), n, sum(pair[1] for pair in others)


def _length(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _mean_look(window, reference, lambda night: (night.readings.length, None))
    if found is None:
        return None
    moved, n, m = found
    note = f"typically {np.expm1(moved.mean):.0f} characters, {np.expm1(moved.reference):.0f} before"
    sign = np.sign(moved.difference)
    return _Finding(
        float(np.expm1(moved.difference)), moved.p_value, note, n, m, lambda night: sign * night.readings.length + 99
    )


def _language(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _share_look(window, reference, lambda night: (int(night.readings.foreign.sum()), len(night.texts)))
    if found is None:
        return None
    moved, n, m = found
    note = f"{moved.mean:.1%} of the reviews are mostly in another script, {moved.reference:.1%} before"
    return _Finding(moved.difference, moved.p_value, note, n, m, lambda night: night.readings.foreign)


def _unknown_words(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _mean_look(
        window, reference, lambda night: (_ratio(night.readings.unknown, night.readings.words), night.readings.words)
    )
    if found is None:
        return None
    moved, n, m = found
    note = f"{moved.mean:.1%} of the words were never seen in training, {moved.reference:.1%} before"

    def words() -> str:
        return _often(lens.unknown_words(text for night in window for text in night.texts))

    return _Finding(_relative(moved), moved.p_value, note, n, m, lambda night: night.readings.unknown, words)


def _misspellings(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _mean_look(
        window,
        reference,
        lambda night: (_ratio(night.readings.misspelt, night.readings.long_words), night.readings.long_words),
    )
    if found is None:
        return None
    moved, n, m = found
    note = f"{moved.mean:.1%} of the longer words are one letter off a common one, {moved.reference:.1%} before"

    def words() -> str:
        return _often(lens.unknown_words((text for night in window for text in night.texts), misspelt=True))

    return _Finding(_relative(moved), moved.p_value, note, n, m, lambda night: night.readings.misspelt, words)


def _embedding(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    here = np.concatenate([night.readings.vectors for night in window])
    others = [night.readings.vectors for night in reference]
    moved, p_value, direction = distance(here, others, nights=len(window))
    note = f"mean of the character n-grams' embedding {moved:.2f} standard deviations away"
    centre = np.concatenate(others).mean(axis=0)
    n, m = len(here), sum(map(len, others))
    return _Finding(moved, p_value, note, n, m, lambda night: (night.readings.vectors - centre) @ direction)


def _templates(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    here: Counter[str] = Counter()
    for night in window:
        here.update(night.readings.phrases)
    n, m = (sum(len(night.readings) for night in nights) for nights in (window, reference))
    often = [phrase for phrase, count in here.items() if count >= 3]
    there = {phrase: sum(night.readings.phrases[phrase] for night in reference) for phrase in often}
    phrase, rise, p_value = bursts(here, n, there, m, min_share=LIMITS["input/templates"] / 2)
    if phrase is None:
        return _Finding(0.0, 1.0, "no phrase is more frequent than before", n, m)
    note = f"«{phrase}» in {here[phrase] / n:.1%} of the reviews, {there[phrase] / m:.1%} before"
    return _Finding(rise, p_value, note, n, m, lambda night: _has_phrase(night, phrase))


def _copies(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _share_look(window, reference, lambda night: (night.copies, night.arrivals))
    if found is None:
        return None
    moved, n, m = found
    note = f"{moved.mean:.1%} of what came in were exact copies of earlier reviews, {moved.reference:.1%} before"
    return _Finding(moved.difference, moved.p_value, note, n, m)


def _class_shares(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    counts = [Counter(night.labels) for night in (*window, *reference)]
    classes = sorted({label for count in counts for label in count})
    limit = LIMITS["prediction/class_shares"]
    looks: list[tuple[str, Shift, int, int]] = []
    for label in classes:
        found = _share_look(window, reference, lambda night, label=label: (_count(night, label), len(night.labels)))  # type: ignore[misc]
        if found is not None:
            looks.append((label, *found))
    if not looks:
        return None
    # A change too small to matter must not hide one that is not.
    looks.sort(key=lambda item: (abs(item[1].difference) < limit, item[1].p_value))
    label, moved, n, m = looks[0]
    told = sorted((item for item in looks if abs(item[1].difference) >= limit / 2), key=lambda item: -abs(item[1].difference))
    note = "; ".join(
        f"«{name}»: {change.mean:.1%} of the answers, {change.reference:.1%} before"
        for name, change, _, _ in (told or looks[:1])[:3]
    )
    p_value = min(1.0, moved.p_value * len(classes))
    grew = moved.difference > 0
    return _Finding(moved.difference, p_value, note, n, m, (lambda night: _answered(night, label)) if grew else None)


def _confidence(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _mean_look(window, reference, lambda night: (night.confidence, None))
    if found is None:
        return None
    moved, n, m = found
    note = f"mean confidence {moved.mean:.3f}, {moved.reference:.3f} before"
    sign = np.sign(moved.difference)
    return _Finding(moved.difference, moved.p_value, note, n, m, lambda night: sign * night.confidence + 1 + 1e-9)


def _abstentions(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _share_look(window, reference, lambda night: (int(night.abstained.sum()), len(night.abstained)))
    if found is None:
        return None
    moved, n, m = found
    note = f"{moved.mean:.1%} of the answers are below the champion's thresholds, {moved.reference:.1%} before"
    wanted = moved.difference > 0
    return _Finding(
        moved.difference, moved.p_value, note, n, m, lambda night: np.asarray(night.abstained == wanted, dtype=np.float64)
    )


def _agreement(window: Sequence[Night], reference: Sequence[Night], lens: Lens) -> _Finding | None:
    found = _share_look(window, reference, lambda night: (int(np.nansum(night.agreed)), int(np.isfinite(night.agreed).sum())))
    if found is None or found[1] < 20:
        return None
    moved, n, m = found
    note = f"{moved.mean:.1%} of the labels that came in are the champion's answer, {moved.reference:.1%} before"
    return _Finding(
        moved.difference, moved.p_value, note, n, m, lambda night: np.asarray(night.agreed == 0.0, dtype=np.float64)
    )


_WATCHED = {
    "input/length": _Watched("input", "change of the typical length, relative", _length, of_model=False),
    "input/language": _Watched("input", "change of the share of reviews in another script", _language, of_model=False),
    "input/unknown_words": _Watched(
        "input", "change of the share of words that training did not have, relative", _unknown_words, of_model=False
    ),
    "input/misspellings": _Watched(
        "input", "change of the share of longer words that look misspelt, relative", _misspellings, of_model=False
    ),
    "input/embedding": _Watched(
        "input", "distance between mean embeddings, in standard deviations of a review", _embedding, of_model=False
    ),
    "input/templates": _Watched(
        "input", "rise of the share of reviews with one and the same run of four words", _templates, of_model=False
    ),
    "input/copies": _Watched("input", "change of the share of exact copies among what came in", _copies, of_model=False),
    "prediction/class_shares": _Watched(
        "prediction", "largest change of a category's share of the answers", _class_shares, of_model=True
    ),
    "confidence/mean": _Watched("confidence", "change of the mean confidence", _confidence, of_model=True),
    "confidence/abstentions": _Watched(
        "confidence", "change of the share of answers below the champion's thresholds", _abstentions, of_model=True
    ),
    "label/agreement": _Watched(
        "label", "change of the share of later labels that are the champion's answer", _agreement, of_model=True
    ),
}


def _relative(moved: Shift) -> float:
    # Where nearly nothing was there before, anything would be a multiple of it.
    return moved.difference / max(moved.reference, 0.002)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _often(found: Counter[str]) -> str:
    words = [f"«{word}» ({count})" for word, count in found.most_common(5) if count > 1]
    return f"; most often {', '.join(words)}" if words else ""


def _has_phrase(night: Night, phrase: str) -> Floats:
    return np.array([phrase in phrases_of(words_of(text)) for text in night.texts], dtype=np.float64)


def _count(night: Night, label: str) -> int:
    return sum(answer == label for answer in night.labels)


def _answered(night: Night, label: str) -> Floats:
    return np.array([answer == label for answer in night.labels], dtype=np.float64)
