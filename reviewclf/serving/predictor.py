"""From the bytes of a request to those of its answer: what the server does with a model, and what is timed about one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import to_json

from reviewclf.errors import RegistryError
from reviewclf.registry.deployment import Version
from reviewclf.serving.batching import Batcher
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.model import ServedModel, load, threads_of
from reviewclf.serving.problems import Problem
from reviewclf.serving.schema import parse_request
from reviewclf.settings import ServingSettings

# Gold may hold longer reviews, and a batch more of them, than clients may send.
_NO_LIMITS = {"max_texts": 10**6, "max_characters": 10**9, "max_queue": 10**9}


class Answer(NamedTuple):
    """Texts of a request, the likeliest label of each, and the JSON of the answer."""

    texts: list[str]
    labels: list[str]
    content: bytes


@dataclass(frozen=True)
class Predictor:
    """Answers requests with the model that it is given.

    Attributes
    ----------
    settings : ServingSettings
        Limits.
    metrics : Metrics
        Told texts, labels and confidences.
    batcher : Batcher
        Runs the model.
    """

    settings: ServingSettings
    metrics: Metrics
    batcher: Batcher

    @classmethod
    def from_settings(cls, settings: ServingSettings, metrics: Metrics) -> Predictor:
        """With a batcher of its own."""
        # A process that reads a request as large as allowed still takes another one.
        share = max(ceil(settings.max_queue / (settings.workers or 1)), min(settings.max_queue, 2 * settings.max_texts))
        batcher = Batcher(max_batch=settings.max_batch, max_queue=share, threads=threads_of(settings), metrics=metrics)
        return cls(settings, metrics, batcher)

    async def predict(self, model: ServedModel, body: bytes) -> Answer:
        """Answer one request; raises :class:`Problem` where it cannot be read or too many wait."""
        asked, texts = parse_request(body, self.settings)
        self.metrics.request_texts.observe(len(texts))
        answers = await self.batcher.submit(model, texts)
        labels = model.classifier.answers(answers)
        shown = model.classifier.answers(answers, abstain=True) if asked.abstain else labels
        confidences = answers.max(axis=1).tolist()
        self.metrics.answered(model.version, labels, confidences)
        predictions: list[dict[str, Any]] = [
            {"label": label, "confidence": confidence} for label, confidence in zip(shown, confidences, strict=True)
        ]
        if asked.probabilities:
            classes = model.classifier.classes
            for prediction, row in zip(predictions, answers.tolist(), strict=True):
                prediction["probabilities"] = dict(zip(classes, row, strict=True))
        return Answer(texts, labels, to_json({"model_version": model.version, "predictions": predictions}))


@contextmanager
def served(folder: Path, settings: ServingSettings) -> Iterator[Callable[[Sequence[str]], bytes]]:
    """A function that answers texts as the server does, less HTTP, to be timed.

    Parameters
    ----------
    folder : Path
        What :func:`reviewclf.registry.deployment.fetch_classifier` copied.
    settings : ServingSettings
        Processes and batches; limits of requests do not count here.

    Raises
    ------
    RegistryError
        The server would refuse the model, or fails to answer with it.
    """
    settings = settings.model_copy(update=_NO_LIMITS)
    classifier, kind = load(folder, threads=threads_of(settings), batch=1)
    now = datetime.now(UTC)
    model = ServedModel(Version(version="timed", run_id="", registered_at=now), classifier, {}, now, kind=kind)
    predictor = Predictor.from_settings(settings, Metrics())

    async def answer(texts: Sequence[str]) -> bytes:
        try:
            return (await predictor.predict(model, to_json({"texts": list(texts)}))).content
        except Problem as problem:
            raise RegistryError(f"the server does not answer with it: {problem}") from problem

    with asyncio.Runner() as runner:
        runner.run(predictor.batcher.start())
        try:
            yield lambda texts: runner.run(answer(texts))
        finally:
            runner.run(predictor.batcher.stop())
