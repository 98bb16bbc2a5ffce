"""Which synthetic reviews may be trained on: every rule has a name, every refusal a reason. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from reviewclf.augmentation.rules import text_rules
from reviewclf.data.duplicates import match_near_duplicates, near_duplicate_pairs
from reviewclf.settings import AugmentationSettings
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import normal_form

_OPENING_WORDS = 2


class Verdict(NamedTuple):
    """What a rule says of a refused candidate: its name, and what it found."""

    reason: str
    detail: str


class DraftFilter:
    """Judges candidates of one class, in the order in which they come; the first rule that a candidate breaks is its reason.

    Rules, in this order: those of :func:`~reviewclf.augmentation.rules.text_rules`; ``near_duplicate_of_gold``,
    ``near_duplicate_of_validation``, ``near_duplicate_of_real``; ``keyword_check``; ``near_duplicate_of_candidate``;
    ``same_opening``. The costly one, ``llm_check``, comes after these, and ``low_diversity`` last; see
    :func:`reviewclf.augmentation.generate_and_filter`.

    Parameters
    ----------
    category : str
        The class wanted.
    taxonomy : Taxonomy
        Stems and names.
    real : DataFrame
        Real reviews: ``review_id``, ``text_clean``, ``label``, ``split`` (``train``, ``validation`` or ``test``).
    told : str
        What the writers were told.
    options : AugmentationSettings
        Limits.
    """

    def __init__(
        self, category: str, taxonomy: Taxonomy, real: pd.DataFrame, *, told: str, options: AugmentationSettings
    ) -> None:
        self._category = category
        self._taxonomy = taxonomy
        self._options = options
        of_class = real.loc[(real["label"] == category) & (real["split"] == "train"), "text_clean"].tolist()
        self._rules = text_rules(
            told=told,
            names=taxonomy.names,
            real=of_class,
            min_characters=options.min_characters,
            max_characters=options.max_characters,
        )
        self._references = {
            f"near_duplicate_of_{name}": real.loc[real["split"] == split, ["text_clean", "review_id"]]
            for name, split in (("gold", "test"), ("validation", "validation"), ("real", "train"))
        }
        self._taken: dict[str, str] = {}
        self._openings: Counter[str] = Counter()

    @property
    def rules(self) -> list[str]:
        """Names of all rules, in the order in which they are asked."""
        later = ("keyword_check", "near_duplicate_of_candidate", "same_opening", "llm_check", "low_diversity")
        return [*self._rules, *self._references, *later]

    def judge(self, texts: Sequence[str], clean: Sequence[str], ids: Sequence[str]) -> list[Verdict | None]:
        """Verdict on each further candidate; None for those that no rule refuses.

        Parameters
        ----------
        texts, clean, ids : sequence of str
            As written, cleaned, and the names under which they are to be called.
        """
        verdicts = [self._by_text(text) for text in texts]
        for reason, references in self._references.items():
            open_places = [place for place, verdict in enumerate(verdicts) if verdict is None]
            matches = match_near_duplicates(
                [clean[place] for place in open_places], references["text_clean"].tolist(), similarity=self._options.similarity
            )
            for place, match in zip(open_places, matches, strict=True):
                if match is not None:
                    text, name = references.iloc[match]
                    # What gold says stays where gold is.
                    verdicts[place] = Verdict(reason, name if reason == "near_duplicate_of_gold" else f"{name}: {text[:120]}")
        for place, verdict in enumerate(verdicts):
            if verdict is None and not passes_keyword_check(clean[place], self._category, self._taxonomy):
                counts = self._taxonomy.matcher.counts(clean[place])
                found = ", ".join(f"{k}: {v}" for k, v in counts.items()) or "no stem occurs"
                verdicts[place] = Verdict("keyword_check", found)
        self._among_themselves(verdicts, clean, ids)
        return verdicts

    def _by_text(self, text: str) -> Verdict | None:
        findings = ((name, rule(text)) for name, rule in self._rules.items())
        return next((Verdict(name, found) for name, found in findings if found is not None), None)

    def _among_themselves(self, verdicts: list[Verdict | None], clean: Sequence[str], ids: Sequence[str]) -> None:
        open_places = [place for place, verdict in enumerate(verdicts) if verdict is None]
        texts = [*self._taken, *(clean[place] for place in open_places)]
        names = [*self._taken.values(), *(ids[place] for place in open_places)]
        like: dict[int, list[int]] = {}
        for first, second in near_duplicate_pairs(texts, similarity=self._options.similarity).tolist():
            like.setdefault(second, []).append(first)
        refused: set[int] = set()
        for number, place in enumerate(open_places, start=len(self._taken)):
            twin = next((other for other in like.get(number, ()) if other not in refused), None)
            opening = " ".join(normal_form(clean[place]).split()[:_OPENING_WORDS])
            if twin is not None:
                verdicts[place] = Verdict("near_duplicate_of_candidate", f"{names[twin]}: {texts[twin][:120]}")
            elif self._openings[opening] >= self._options.max_same_opening:
                verdicts[place] = Verdict("same_opening", opening)
            else:
                self._openings[opening] += 1
                self._taken[clean[place]] = ids[place]
                continue
            refused.add(number)


def passes_keyword_check(text: str, category: str, taxonomy: Taxonomy) -> bool:
    """Whether word stems speak for `category`, and for no other category more often.

    A text of the ``no_product`` category must hold no stem at all; a category without stems cannot be checked and passes.
    """
    counts = taxonomy.matcher.counts(text)
    of_category = next(item for item in taxonomy.categories if item.name == category)
    if of_category.no_product:
        return not counts
    if not of_category.keywords:
        return True
    return counts.get(category, 0) > 0 and counts[category] == max(counts.values())


def passes_llm_check(labels: Sequence[str | None], category: str, *, min_share: float) -> bool:
    """Whether enough of the votes on a text, given by annotators who do not know what it was meant to be, name `category`.

    Parameters
    ----------
    labels : sequence of str or None
        One a vote; None where an answer could not be read, which counts against the text.
    min_share : float
        Share of votes for `category` from which the check is passed. No votes never pass.
    """
    return bool(labels) and sum(label == category for label in labels) / len(labels) >= min_share


def count_reasons(rules: Sequence[str], reasons: Sequence[str]) -> Mapping[str, int]:
    """How many candidates each rule refused, in the rules' order, zeros too; then any other reason."""
    counts = Counter(reasons)
    named = {rule: counts.pop(rule, 0) for rule in rules}
    return {**named, **dict(sorted(counts.items()))}


def filter_table(reports: Iterable[Any]) -> str:
    """Candidates written, refused by each rule, and kept, as a table for logs and for MLflow."""
    lines = ["| class | rule | candidates |", "|---|---|---:|"]
    for report in reports:
        lines.append(f"| {report['category']} | written | {report['written']} |")
        lines.extend(f"| {report['category']} | {rule} | {count} |" for rule, count in report["rules"].items())
        lines.append(f"| {report['category']} | kept | {report['kept']} |")
    return "\n".join(lines)
