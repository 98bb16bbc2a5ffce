"""Who writes reviews: a language model, or a file of candidates that one wrote elsewhere."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias

import pandas as pd
from pydantic import BaseModel

from reviewclf.augmentation.prompts import WritingRequest, parse_reviews
from reviewclf.data.frames import read_frame
from reviewclf.errors import AugmentationError
from reviewclf.llm.budget import Paced
from reviewclf.llm.client import ChatClient
from reviewclf.llm.local import LocalModel
from reviewclf.llm.replies import Reply, StorableText
from reviewclf.llm.ways import ChatRequest
from reviewclf.manifest import digest_of
from reviewclf.settings import AugmentationSettings, LLMSettings, Settings
from reviewclf.taxonomy import Taxonomy, match_name

logger = logging.getLogger(__name__)

WrittenIdentity: TypeAlias = tuple[str, str, str, int, int]


class Written(BaseModel, frozen=True):
    """What came of one request; a line of the journal.

    Attributes
    ----------
    category, number, seed, prompt, examples
        Those of the request.
    generator : str
        Who wrote: ``model@revision``, or the digest of the file.
    texts : tuple of str
        The reviews, as they came; empty when none could be read from the answer.
    raw : str or None
        Beginning of an answer from which none could be read.
    tokens_in, tokens_out, seconds
        What it cost.
    """

    category: str
    number: int
    seed: int
    prompt: str
    generator: str
    examples: tuple[str, ...] = ()
    texts: tuple[StorableText, ...] = ()
    raw: StorableText | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0

    @property
    def identity(self) -> WrittenIdentity:
        """Under which an answer is kept once: category, generator, prompt, seed, number."""
        return (self.category, self.generator, self.prompt, self.seed, self.number)


class Generator(Protocol):
    """Anything that writes reviews."""

    @property
    def version(self) -> str:
        """Changes whenever the same request could get another answer."""

    @property
    def is_costly(self) -> bool:
        """Whether an answer takes so long, or so much money, that it has to be kept the moment it exists."""

    def available(self, category: str) -> int | None:
        """How many texts there are for a category; None: as many as are asked for."""

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """One answer a request, in any order. Whoever stops iterating stops the writing."""


class RecordedGenerator:
    """Hands out the candidates of a file in their order, as many a request as it asks for.

    Parameters
    ----------
    texts : mapping of str to sequence of str
        Candidates by category.
    """

    is_costly = False

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._texts = {category: tuple(of_category) for category, of_category in texts.items()}
        self.version = f"recorded@{digest_of({name: list(of) for name, of in self._texts.items()})[:16]}"

    @classmethod
    def load(cls, uri: str, categories: Sequence[str]) -> RecordedGenerator:
        """Read a file (CSV, JSON Lines, Parquet; local or ``s3://``) with the columns ``category`` and ``text``.

        Rows of other categories than `categories` are left aside with a warning: a file may serve several taxonomies. Letter
        case and white space are not minded.

        Raises
        ------
        AugmentationError
            A column is missing or a text is empty; the message names file, row and column.
        """
        frame = read_frame(uri, setting="REVIEWCLF_SYNTHETIC")
        missing = [name for name in ("category", "text") if name not in frame.columns]
        if missing:
            raise AugmentationError(
                f"{uri}: candidates need the column(s) {', '.join(missing)}; found {', '.join(map(str, frame.columns))}"
            )
        texts: dict[str, list[str]] = {}
        strange: Counter[str] = Counter()
        for number, (category, text) in enumerate(zip(frame["category"], frame["text"], strict=True), start=1):
            if pd.isna(text) or not str(text).strip():
                raise AugmentationError(f"{uri}, row {number}: column text is empty; remove the row or write a review into it")
            if (name := match_name(category, categories)) is None:
                strange["" if pd.isna(category) else str(category).strip()] += 1
            else:
                texts.setdefault(name, []).append(str(text))
        if strange:
            named = ", ".join(f"{name!r} ({count} rows)" for name, count in strange.items())
            logger.warning("%s: not in the taxonomy and left aside: %s", uri, named)
        return cls(texts)

    def available(self, category: str) -> int:
        """Candidates of a category."""
        return len(self._texts.get(category, ()))

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """The candidates that stand at the requests' places."""
        for request in requests:
            start = request.number * request.n
            yield Written(
                **request.model_dump(include={"category", "number", "seed", "prompt"}),
                generator=self.version,
                texts=self._texts.get(request.category, ())[start : start + request.n],
            )


class PromptedGenerator(Paced):
    """Writes with the model that votes.

    Parameters
    ----------
    options : LLMSettings
        The model.
    writing : AugmentationSettings
        ``temperature``, ``tokens_per_review``.
    """

    is_costly = True

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        super().__init__()
        self.version = f"{options.model_name}/t{writing.temperature:g}"
        self._temperature, self._tokens_per_review = writing.temperature, writing.tokens_per_review

    def available(self, category: str) -> None:
        """As many as are asked for."""

    def _room(self, request: WritingRequest) -> int:
        return self._tokens_per_review * request.n + 32

    def _written(self, request: WritingRequest, reply: Reply) -> Written:
        texts = () if reply.refusal else tuple(parse_reviews(reply.content, is_cut=reply.is_cut)[: 2 * request.n])
        return Written(
            **request.model_dump(include={"category", "number", "seed", "prompt", "examples"}),
            generator=self.version,
            texts=texts,
            raw=None if texts else (reply.refusal or reply.content[:2000]),
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            seconds=reply.seconds,
        )


class OpenAIGenerator(PromptedGenerator):
    """Asks a server, several requests at a time; see :class:`reviewclf.llm.client.ChatClient`.

    A request that the server refuses, or whose answer was cut before a review came, brings none: the former is kept as it is,
    the latter asked again another time.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key or the request as such, or wants to be paid.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded. What was written by then has been handed out.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        super().__init__(options, writing)
        self._client = ChatClient(options, self, has_probabilities=False)
        self._is_prepared = False

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """Answers as they come back."""
        waiting = list(requests)
        if not self._is_prepared and waiting and self.budget.may_ask(0):
            # The first request shows how the server wants to be asked.
            first = waiting.pop(0)
            reply = self._client.prepare(self._chat_request(first))
            self._is_prepared = True
            yield from self._kept(first, reply)
        for request, reply in self._client.answers((request, self._chat_request(request)) for request in waiting):
            yield from self._kept(request, reply)

    def _chat_request(self, request: WritingRequest) -> ChatRequest:
        reviews = {"type": "array", "items": {"type": "string"}, "minItems": request.n, "maxItems": request.n}
        return ChatRequest(
            system=request.system,
            user=request.user,
            form="reviews",
            properties={"reviews": reviews},
            tokens=lambda form, has_probabilities: self._room(request),
            temperature=self._temperature,
            # Servers that do not know seeds leave it unread.
            seed=request.own_seed,
        )

    def _kept(self, request: WritingRequest, reply: Reply) -> Iterator[Written]:
        """What came of a request; nothing where it is to be asked again."""
        written = self._written(request, reply)
        is_cut = not written.texts and not reply.refusal and (reply.is_cut or reply.has_thought)
        if reply.is_final and not is_cut:
            yield written
            return
        self.budget.waste(reply.tokens_in, reply.tokens_out)
        why = reply.refusal or "the answer was cut, or a thought (REVIEWCLF_LLM__THINKING)"
        logger.warning("request %d for %s is left for another time: %s", request.number, request.category, why)


class TransformersGenerator(PromptedGenerator):
    """Samples answers one request at a time; the same request, model and machine give the same answer.

    Raises
    ------
    LabelingError
        When asked: the model cannot be loaded.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        super().__init__(options, writing)
        self._model = LocalModel(options)
        self._thinking = options.thinking == "on"

    def use(self, model: Any, tokenizer: Any) -> Self:
        """Take a model and tokenizer that are loaded already."""
        self._model.use(model, tokenizer)
        return self

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """Answers in the order of the requests."""
        for request in requests:
            if not self.budget.may_ask(0):
                return
            question = self._model.render(request.system, request.user, thinking=self._thinking)
            _, tokenizer = self._model.load()
            tokens = tokenizer(question, add_special_tokens=False)["input_ids"]
            room, seed = self._room(request), request.own_seed
            reply = self._model.write(tokens, room=room, temperature=self._temperature, top_p=0.95, seed=seed)
            yield self._written(request, reply)


def make_generator(settings: Settings, taxonomy: Taxonomy) -> Generator | None:
    """The writer that the settings ask for; None where they ask for none, or name no recorded candidates.

    With an annotator of an installed package, which only votes, recorded candidates are tried where there are any.
    """
    backend = settings.llm.backend if settings.augmentation.backend == "auto" else settings.augmentation.backend
    if backend == "openai":
        return OpenAIGenerator(settings.llm, settings.augmentation)
    if backend == "transformers":
        return TransformersGenerator(settings.llm, settings.augmentation)
    if backend == "none" or settings.synthetic is None:
        return None
    return RecordedGenerator.load(settings.synthetic, taxonomy.names)
