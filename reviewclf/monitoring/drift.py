"""Drift of the input, the predictions and the confidence: a night's reviews against the nights before and the training data.

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reviewclf.monitoring.features import FeatureExtractor, Features, phrases_of, words_of
from reviewclf.monitoring.report import Signal
from reviewclf.monitoring.shift import Sample, Shift, bursts, distance, sample, share_shift, shift
from reviewclf.settings import MonitoringSettings
from reviewclf.text import redact

Floats = NDArray[np.float64]

WINDOWS = (1, 2, 7)
FEWEST_NIGHTS = 3
# A night that alarmed is kept out of the reference for so many nights.
QUARANTINE = 7
_DAYS = 365
_EXAMPLES = 3
_SHOWN = 200
_FEWEST_LABELS = 20
# Where nearly nothing was there before, anything would be a multiple of it.
_SMALLEST_BASE = 0.002


@dataclass(frozen=True)
class Night:
    """One night's reviews with all that is known of them; also stands for the training data.

    Attributes
    ----------
    features : Features
    texts : sequence of str
        Cleaned, as in `features`.
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

    features: Features
    texts: Sequence[str]
    version: str
    labels: Sequence[str]
    confidence: Floats
    abstained: NDArray[np.bool_]
    agreed: Floats = field(default_factory=lambda: np.empty(0))
    copies: int = 0
    arrivals: int = 0
    alarmed: bool = False


class _Finding(NamedTuple):
    """What a test of one window found: size of the change in the signal's unit, p-value, words for people.

    `score` says how much each review of a night shows the change (0 and less: not at all); `details` are added to the note
    when the signal alarms, and computed only then, as they mean reading the nights again.
    """

    value: float
    p_value: float
    note: str
    n: int
    reference_n: int
    score: Callable[[Night], Floats] | None = None
    details: Callable[[], str] | None = None


Nights = Sequence[Night]
# Compares a window of nights with the reference; None where one of the two has too little.
_Test = Callable[[Nights, Nights, FeatureExtractor], _Finding | None]


def detect_drift(
    tonight: Night, past: Nights, training: Night | None, extractor: FeatureExtractor, options: MonitoringSettings | None = None
) -> tuple[Signal, ...]:
    """Test all signals in all windows that end tonight.

    Parameters
    ----------
    tonight : Night
    past : sequence of Night
        Nights before, oldest first.
    training : Night, optional
        The champion's training and validation rows.
    extractor : FeatureExtractor
        What all features were made with.
    options : MonitoringSettings, optional

    Returns
    -------
    tuple of Signal
        One each, in the order of `SIGNALS`; what cannot be measured has no value and says why in its note.
    """
    options = options or MonitoringSettings()
    return tuple(_signal(name, tonight, past, training, extractor, options) for name in SIGNALS)


def _signal(
    name: str, tonight: Night, past: Nights, training: Night | None, extractor: FeatureExtractor, options: MonitoringSettings
) -> Signal:
    description, limit, test = SIGNALS[name]
    group = name.partition("/")[0]
    signal = partial(Signal, name=name, group=group, description=description, limit=limit)
    nights = [*past, tonight]
    if group != "input":
        # What another model said is no reference, and no part of a window.
        nights = [night for night in nights if night.version == tonight.version]
    found: list[tuple[float, int, _Finding]] = []
    why = ""
    for width in (width for width in WINDOWS if width <= len(nights)):
        window = nights[-width:]
        if sum(len(night.texts) for night in window) < options.min_rows:
            why = f"fewer than {options.min_rows} reviews"
            continue
        before = _reference(nights[:-width], tonight.version)[-options.reference_nights :]
        reference = before if len(before) >= FEWEST_NIGHTS else [training] if training is not None else []
        if not reference:
            why = why or "nothing to compare with yet"
        elif finding := test(window, reference, extractor):
            found.append((min(1.0, finding.p_value * len(WINDOWS) * len(SIGNALS)), width, finding))
    if not found:
        return signal(value=None, n=len(tonight.texts), reference_n=0, note=why or "not known yet")
    rate = options.false_alarms_per_year / _DAYS
    crossed = [entry for entry in found if entry[0] < rate and abs(entry[2].value) >= limit]
    # What is shown is tonight, unless a longer window alarms.
    p_value, width, finding = min(crossed, key=lambda entry: entry[0]) if crossed else found[0]
    details = finding.details() if crossed and finding.details else ""
    return signal(
        value=round(finding.value, 4),
        p_value=p_value,
        n=finding.n,
        reference_n=finding.reference_n,
        alarmed=bool(crossed),
        note=finding.note + details + ("" if width == 1 else f" (last {width} nights)"),
        examples=_examples(nights[-width:], finding) if crossed else (),
    )


def _reference(nights: Nights, version: str) -> list[Night]:
    """Nights fit to compare with; see the module's words on nights that alarmed."""
    old = len(nights) - QUARANTINE
    return [night for place, night in enumerate(nights) if place < old or not night.alarmed or night.version != version]


def _examples(window: Nights, finding: _Finding) -> tuple[str, ...]:
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
    return tuple(shown)


# -- tests -----------------------------------------------------------------------------------------------------------


def _column(name: str, *nights: Night) -> Floats:
    """A value for each review: one of its features, or what its night says of the answer."""
    parts = (getattr(night.features, name, None) for night in nights)
    values = [getattr(night, name) if part is None else part for night, part in zip(nights, parts, strict=True)]
    return np.concatenate(values, dtype=np.float64)


def _mean(
    part: str,
    note: str,
    *,
    whole: str | None = None,
    change: Callable[[Shift], float] = lambda moved: moved.difference,
    shown: Callable[[float], float] = float,
    details: Callable[[FeatureExtractor, Iterable[str]], Counter[str]] | None = None,
) -> _Test:
    """A test of the mean of a column or, with `whole`, of the ratio of two columns' sums.

    `note` takes the mean and that of the reference, as `shown`; `details` counts words in the texts of the window.
    """

    def sampled(nights: Nights) -> Sample | None:
        values = _column(part, *nights)
        if whole is None:
            return sample(values, nights=len(nights))
        weights = _column(whole, *nights)
        return sample(np.divide(values, weights, out=np.zeros_like(values), where=weights > 0), weights, nights=len(nights))

    def test(window: Nights, reference: Nights, extractor: FeatureExtractor) -> _Finding | None:
        here = sampled(window)
        others = [there for night in reference if (there := sampled([night])) is not None]
        if here is None or not others:
            return None
        moved = shift(here, others)
        said = note.format(shown(moved.mean), shown(moved.reference))
        sign, texts = np.sign(moved.difference), (text for night in window for text in night.texts)

        def score(night: Night) -> Floats:
            # What a review adds to the difference, so that one which is as before, or moved the other way, is not shown.
            expected = moved.reference * (1.0 if whole is None else _column(whole, night))
            return np.asarray(sign * (_column(part, night) - expected))

        return _Finding(
            change(moved),
            moved.p_value,
            said,
            here.n,
            sum(other.n for other in others),
            score,
            details and (lambda: _often(details(extractor, texts))),
        )

    return test


def _share(
    note: str,
    read: Callable[[Night], tuple[int, int]],
    score: Callable[[Night, bool], Floats] | None = None,
    *,
    fewest: int = 1,
) -> _Test:
    """A test of a share, of which `read` gives the count and the whole; `score` takes a night and whether the share rose."""

    def test(window: Nights, reference: Nights, _: FeatureExtractor) -> _Finding | None:
        count, n = (sum(values) for values in zip(*(read(night) for night in window), strict=True))
        others = [pair for night in reference if (pair := read(night))[1] > 0]
        if n < fewest or not others:
            return None
        moved = share_shift(count, n, others, nights=len(window))
        rose = moved.difference > 0
        said = note.format(moved.mean, moved.reference)
        m = sum(whole for _, whole in others)
        return _Finding(moved.difference, moved.p_value, said, n, m, score and (lambda night: score(night, rose)))

    return test


def _share_of(column: str, note: str, *, fewest: int = 1) -> _Test:
    """A test of the share of ones in a column of ones and zeros; NaN is left out."""

    def read(night: Night) -> tuple[int, int]:
        values = _column(column, night)
        return int(np.nansum(values)), int(np.isfinite(values).sum())

    return _share(note, read, lambda night, rose: _ones(_column(column, night) == rose), fewest=fewest)


def _embedding(window: Nights, reference: Nights, extractor: FeatureExtractor) -> _Finding | None:
    here = np.concatenate([night.features.vectors for night in window])
    others = [night.features.vectors for night in reference]
    moved, p_value, direction = distance(here, others, nights=len(window))
    note = f"mean of the character n-grams' embedding {moved:.2f} standard deviations away"
    centre = np.concatenate(others).mean(axis=0)
    n, m = len(here), sum(map(len, others))
    return _Finding(moved, p_value, note, n, m, lambda night: (night.features.vectors - centre) @ direction)


def _templates(window: Nights, reference: Nights, extractor: FeatureExtractor) -> _Finding | None:
    here: Counter[str] = Counter()
    for night in window:
        here.update(night.features.phrases)
    n, m = (sum(len(night.features) for night in nights) for nights in (window, reference))
    often = [phrase for phrase, count in here.items() if count >= 3]
    there = {phrase: sum(night.features.phrases[phrase] for night in reference) for phrase in often}
    phrase, rise, p_value = bursts(here, n, there, m, min_share=SIGNALS["input/templates"].limit / 2)
    if phrase is None:
        return _Finding(0.0, 1.0, "no phrase is more frequent than before", n, m)
    note = f"«{phrase}» in {here[phrase] / n:.1%} of the reviews, {there[phrase] / m:.1%} before"
    return _Finding(
        rise, p_value, note, n, m, lambda night: _ones(phrase in phrases_of(words_of(text)) for text in night.texts)
    )


def _class_shares(window: Nights, reference: Nights, extractor: FeatureExtractor) -> _Finding | None:
    limit = SIGNALS["prediction/class_shares"].limit
    classes = sorted({label for night in (*window, *reference) for label in night.labels})
    found = [_class_share(label)(window, reference, extractor) for label in classes]
    # A change too small to matter must not hide one that is not.
    tested = sorted((item for item in found if item), key=lambda item: (abs(item.value) < limit, item.p_value))
    if not tested:
        return None
    told = sorted((item for item in tested if abs(item.value) >= limit / 2), key=lambda item: -abs(item.value))[:3]
    # Where a category has vanished, the reviews to look at are those of one that has grown instead.
    grown = next((item for item in (tested[0], *told) if item.value > 0), None)
    return tested[0]._replace(
        p_value=min(1.0, tested[0].p_value * len(classes)),
        note="; ".join(item.note for item in told or tested[:1]),
        score=grown and grown.score,
    )


def _class_share(label: str) -> _Test:
    return _share(
        f"«{label}»: {{:.1%}} of the answers, {{:.1%}} before",
        lambda night: (sum(answer == label for answer in night.labels), len(night.labels)),
        lambda night, _: _ones(answer == label for answer in night.labels),
    )


def _relative(moved: Shift) -> float:
    return moved.difference / max(moved.reference, _SMALLEST_BASE)


def _ones(flags: Iterable[bool]) -> Floats:
    return np.array(list(flags), dtype=np.float64)


def _often(found: Counter[str]) -> str:
    words = [f"«{word}» ({count})" for word, count in found.most_common(5) if count > 1]
    return f"; most often {', '.join(words)}" if words else ""


class _Watched(NamedTuple):
    """What is measured, in words; from which size of change it matters, in the unit that these name; and the test."""

    description: str
    limit: float
    test: _Test


SIGNALS = {
    "input/length": _Watched(
        "change of the typical length, relative",
        0.25,
        _mean(
            "length",
            "typically {:.0f} characters, {:.0f} before",
            change=lambda moved: float(np.expm1(moved.difference)),
            shown=np.expm1,
        ),
    ),
    "input/language": _Watched(
        "change of the share of reviews in another script",
        0.03,
        _share_of("foreign", "{:.1%} of the reviews are mostly in another script, {:.1%} before"),
    ),
    "input/unknown_words": _Watched(
        "change of the share of words that training did not have, relative",
        0.2,
        _mean(
            "unknown",
            "{:.1%} of the words were never seen in training, {:.1%} before",
            whole="words",
            change=_relative,
            details=FeatureExtractor.unknown_words,
        ),
    ),
    "input/misspellings": _Watched(
        "change of the share of longer words that look misspelt, relative",
        0.4,
        _mean(
            "misspelt",
            "{:.1%} of the longer words are one letter off a common one, {:.1%} before",
            whole="long_words",
            change=_relative,
            details=partial(FeatureExtractor.unknown_words, misspelt=True),
        ),
    ),
    "input/embedding": _Watched("distance between mean embeddings, in standard deviations of a review", 0.25, _embedding),
    "input/templates": _Watched("rise of the share of reviews with one and the same run of four words", 0.02, _templates),
    "input/copies": _Watched(
        "change of the share of exact copies among what came in",
        0.15,
        _share(
            "{:.1%} of what came in were exact copies of earlier reviews, {:.1%} before",
            lambda night: (night.copies, night.arrivals),
        ),
    ),
    "prediction/class_shares": _Watched("largest change of a category's share of the answers", 0.08, _class_shares),
    "confidence/mean": _Watched(
        "change of the mean confidence", 0.03, _mean("confidence", "mean confidence {:.3f}, {:.3f} before")
    ),
    "confidence/abstentions": _Watched(
        "change of the share of answers below the champion's thresholds",
        0.08,
        _share_of("abstained", "{:.1%} of the answers are below the champion's thresholds, {:.1%} before"),
    ),
    "label/agreement": _Watched(
        "change of the share of later labels that are the champion's answer",
        0.08,
        _share_of(
            "agreed", "{:.1%} of the labels that came in are the champion's answer, {:.1%} before", fewest=_FEWEST_LABELS
        ),
    ),
}
