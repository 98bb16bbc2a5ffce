"""Have reviews of one class written, and filter them; what was paid for is in the journal the moment it exists."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import JsonValue

from reviewclf import tables
from reviewclf.augmentation.diversity import Diversity, diversity, too_alike
from reviewclf.augmentation.filters import DraftFilter, count_reasons, passes_llm_check
from reviewclf.augmentation.generators import Generator, Written, WrittenIdentity
from reviewclf.augmentation.prompts import WritingRequest, load_writing_prompts, told_words
from reviewclf.errors import AugmentationError
from reviewclf.labeling.annotators.base import Annotator, Review, Vote
from reviewclf.labeling.asking import ask_all
from reviewclf.labeling.prompts import prepare_review
from reviewclf.llm.budget import Budget, Paced
from reviewclf.llm.journal import Journal, read_journals
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.store import Store
from reviewclf.taxonomy import Category, Taxonomy
from reviewclf.text import clean_text, text_hash

logger = logging.getLogger(__name__)

JOURNAL = "journal/written"

# How many of the candidates pass is not known before the first have been judged.
_FIRST_GUESS = 0.5
_LEAST_GUESS = 0.1


@dataclass(frozen=True)
class Synthesis:
    """What came of writing reviews of one class.

    Attributes
    ----------
    kept, rejected : DataFrame
        Columns of ``tables.SYNTHETIC_SCHEMA``, in the order of writing; rejected ones with rule and finding.
    written : list of Written
        All answers that candidates came from.
    votes : list of Vote
        All votes on candidates.
    report : dict
        ``wanted``, ``written``, ``kept``; ``rules`` (refused by each), ``diversity``, ``tokens_in``, ``tokens_out``,
        ``stopped`` (why writing ended early, or null).
    """

    kept: pd.DataFrame
    rejected: pd.DataFrame
    written: list[Written]
    votes: list[Vote]
    report: dict[str, JsonValue]


def generate_and_filter(
    category: str,
    n: int,
    *,
    generator: Generator,
    annotator: Annotator | None,
    taxonomy: Taxonomy,
    real: pd.DataFrame,
    store: Store,
    settings: Settings,
    known: Iterable[Written] = (),
    known_votes: Iterable[Vote] = (),
    shards: int = 1,
) -> Synthesis:
    """Write reviews of `category` until `n` have passed all filters, or the limits are reached.

    Parameters
    ----------
    category : str
        The class wanted.
    n : int
        Reviews to keep.
    generator : Generator
        Who writes. Requests are small, each varied by seed; answers are kept in the journal, so that a killed attempt is not
        paid for again.
    annotator : Annotator or None
        Who votes on what the other rules let through. It is shown the text alone. With None nothing passes.
    taxonomy : Taxonomy
        The categories.
    real : DataFrame
        Real reviews of all splits: ``review_id``, ``text_clean``, ``text_hash``, ``label``, ``split``. Training rows of the
        class are shown as examples of style, after personal data are taken out; what repeats any row is refused.
    store : Store
        Where the journal is.
    settings : Settings
        ``augmentation``, ``llm`` (budget), ``seed``.
    known, known_votes : iterable
        What earlier runs have published.
    shards : int
        Tasks that share the budget.

    Returns
    -------
    Synthesis

    Raises
    ------
    AugmentationError
        `category` is not in the taxonomy, or a prompt file breaks its contract.
    AnnotatorUnavailableError
        The server stays away; run it again when it is back.
    """
    options = settings.augmentation
    of_category = next((item for item in taxonomy.categories if item.name == category), None)
    if of_category is None:
        raise AugmentationError(f"category {category!r} is not in the taxonomy ({', '.join(taxonomy.names)})")
    series = _Series(of_category, generator.available(category), real, settings, taxonomy.names)
    answers = {written.identity: written for written in known}
    budget = Budget(settings.llm, shards=shards)
    for written in read_journals(store, JOURNAL, Written):
        if written.identity not in answers and written.category == category:
            # An earlier attempt has paid for it.
            budget.spend(written.tokens_in, written.tokens_out)
        answers.setdefault(written.identity, written)
    filters = DraftFilter(category, taxonomy, real, told=series.told, options=options)
    votes = {vote.identity: vote for vote in known_votes}
    drafts: list[dict[str, Any]] = []
    used: list[Written] = []
    stopped: str | None = None
    most = series.most(n)
    done = 0
    with budget.opened(store, digest_of(["synthesis", category, generator.version, settings.seed])):
        while done < most and stopped is None:
            passed = sum(draft["reason"] is None for draft in drafts)
            if passed >= n:
                break
            rate = max(passed / len(drafts), _LEAST_GUESS) if drafts else _FIRST_GUESS
            more = min(most - done, max(1, math.ceil((n - passed) / max(1, int(options.batch_size * rate)))))
            requests = [series.request(number) for number in range(done, done + more)]
            done += more
            stopped = _write(store, generator, requests, answers, budget)
            written_now = [answers[key] for request in requests if (key := request.identity(generator.version)) in answers]
            used.extend(written_now)
            fresh = [draft for written in written_now for draft in _drafts(written)]
            verdicts = filters.judge(*([draft[name] for draft in fresh] for name in ("text", "text_clean", "review_id")))
            for draft, verdict in zip(fresh, verdicts, strict=True):
                if draft["reason"] is None and verdict is not None:
                    draft["reason"], draft["detail"] = verdict
            if annotator is not None:
                reviews = [
                    Review(text_hash=draft["text_hash"], text=draft["text_clean"], review_ids=(draft["review_id"],))
                    for draft in fresh
                    if draft["reason"] is None
                ]
                given, unvoted = ask_all(store, [annotator], reviews, settings, known=set(votes), shards=shards, budget=budget)
                votes.update((vote.identity, vote) for vote in given)
                stopped = unvoted or stopped
            _check_votes(fresh, votes, category, options.min_vote_share)
            drafts.extend(fresh)
    figures = _check_diversity(drafts, real, category, options.min_diversity, settings.seed)
    frame = pd.DataFrame(drafts, columns=tables.SYNTHETIC_SCHEMA.names)
    is_kept = frame["reason"].isna()
    logger.info("%s: %d of %d candidates kept, %d wanted", category, is_kept.sum(), len(frame), n)
    asked = set(frame["text_hash"])
    return Synthesis(
        kept=frame[is_kept].reset_index(drop=True),
        rejected=frame[~is_kept].reset_index(drop=True),
        written=used,
        votes=[votes[key] for key in sorted(votes) if key[0] in asked],
        report={
            "category": category,
            "generator": generator.version,
            "wanted": n,
            "requests": len(used),
            "written": len(frame),
            "kept": int(is_kept.sum()),
            "rules": dict(count_reasons(["unreadable_answer", *filters.rules], frame.loc[~is_kept, "reason"].tolist())),
            "diversity": figures.model_dump(),
            "tokens_in": sum(written.tokens_in for written in used),
            "tokens_out": sum(written.tokens_out for written in used),
            "stopped": stopped,
        },
    )


class _Series:
    """The requests for one class: request k is the same in every run, as long as its prompt is."""

    def __init__(
        self, category: Category, available: int | None, real: pd.DataFrame, settings: Settings, names: Sequence[str]
    ) -> None:
        self._category, self._available = category, available
        self._options, self._seed = settings.augmentation, settings.seed
        prompts = load_writing_prompts(settings.augmentation.prompts)
        self.told = told_words(prompts, category)
        # A file was written elsewhere, to prompts that are not known here.
        self._prompts = prompts if available is None else []
        rows = real[(real["label"] == category.name) & (real["split"] == "train")].sort_values("text_hash")
        self._examples = {
            key: prepare_review(text, names, max_characters=self._options.max_characters)
            for key, text in zip(rows["text_hash"], rows["text_clean"], strict=True)
        }

    def most(self, n: int) -> int:
        """How many requests may be made."""
        texts = n * self._options.max_candidates if self._available is None else self._available
        return math.ceil(texts / self._options.batch_size) if n > 0 else 0

    def request(self, number: int) -> WritingRequest:
        """Request `number`."""
        size = self._options.batch_size
        if not self._prompts:
            return WritingRequest(category=self._category.name, number=number, seed=self._seed, n=size)
        generator = random.Random(f"{self._seed}\0{self._category.name}\0{number}")  # noqa: S311 - variety, not a secret
        keys = sorted(self._examples)
        shown = generator.sample(keys, min(self._options.examples, len(keys)))
        prompt = self._prompts[number % len(self._prompts)]
        examples = {key: self._examples[key] for key in shown}
        return prompt.fill(self._category, size, number=number, seed=self._seed, examples=examples)


def _write(
    store: Store,
    generator: Generator,
    requests: Sequence[WritingRequest],
    answers: dict[WrittenIdentity, Written],
    budget: Budget,
) -> str | None:
    """Ask for what is not answered yet; why it ended early, if it did."""
    open_requests = [request for request in requests if request.identity(generator.version) not in answers]
    if not generator.is_costly or not open_requests:
        answers.update((written.identity, written) for written in generator.write(open_requests))
        return None
    if isinstance(generator, Paced):
        generator.budget = budget
    if (reached := budget.reached()) is None:
        with Journal(store, JOURNAL) as journal:
            for written in generator.write(open_requests):
                journal.add(written)
                answers[written.identity] = written
                budget.spend(written.tokens_in, written.tokens_out)
                if not isinstance(generator, Paced) and budget.reached() is not None:
                    break
        reached = budget.reached(1)
    if reached is not None:
        logger.warning("%s: writing stops", reached)
    return reached


def _drafts(written: Written) -> Iterator[dict[str, Any]]:
    """Candidates in the columns of ``tables.SYNTHETIC_SCHEMA``, one for each text of an answer, or for one without any."""
    unreadable = not written.texts and written.raw is not None
    of_request = written.model_dump(include={"generator", "prompt", "seed"})
    for place, text in enumerate([written.raw or ""] if unreadable else written.texts):
        clean = clean_text(text)
        key = text_hash(clean)
        yield {
            # The request is in the name: one text may be written twice.
            "review_id": f"synthetic-{key[:12]}-{written.number}-{place}",
            "text": text,
            "text_clean": clean,
            "text_hash": key,
            "label": written.category,
            **of_request,
            "request": written.number,
            "place": place,
            "examples": list(written.examples),
            "votes": 0,
            "share": 0.0,
            "reason": "unreadable_answer" if unreadable else None,
            "detail": None,
        }


def _check_votes(drafts: Sequence[dict[str, Any]], votes: dict[Any, Vote], category: str, min_share: float) -> None:
    labels: dict[str, list[str | None]] = {}
    for vote in votes.values():
        labels.setdefault(vote.text_hash, []).append(vote.label)
    for draft in drafts:
        given = labels.get(draft["text_hash"], [])
        draft["votes"] = len(given)
        draft["share"] = sum(label == category for label in given) / len(given) if given else 0.0
        if draft["reason"] is None and not passes_llm_check(given, category, min_share=min_share):
            others = ", ".join(sorted({str(label) for label in given if label != category})) or "no votes"
            draft["reason"], draft["detail"] = "llm_check", f"{draft['share']:.0%} of {len(given)} votes; {others}"


def _check_diversity(
    drafts: Sequence[dict[str, Any]], real: pd.DataFrame, category: str, min_ratio: float, seed: int
) -> Diversity:
    of_class = real.loc[(real["label"] == category) & (real["split"] == "train"), "text_clean"].tolist()
    left = [draft for draft in drafts if draft["reason"] is None]
    detail = "one of the least original, in a set less varied than real reviews"
    for place in too_alike([draft["text_clean"] for draft in left], of_class, min_ratio=min_ratio, seed=seed):
        left[place].update(reason="low_diversity", detail=detail)
    return diversity([draft["text_clean"] for draft in drafts if draft["reason"] is None], of_class, seed=seed)
