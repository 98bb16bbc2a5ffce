"""How long an answer takes, asked of the code that `reviewclf serve` runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from reviewclf.errors import RegistryError
from reviewclf.serving import edge
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.predicting import Predictor, Served
from reviewclf.serving.served import Copy, load, try_out
from reviewclf.serving.server import make_batcher, threads_of_model
from reviewclf.settings import ServingSettings

# Gold may hold longer reviews, and a batch more of them, than clients may send.
_NO_LIMITS = {"max_texts": 10**6, "max_characters": 10**9, "max_body_bytes": 10**9, "max_queue": 10**9}


class _Sole(Predictor):
    """Answers with one model that never changes."""

    served: Served

    @property
    def model(self) -> Served:
        return self.served


@contextmanager
def served(folder: Path, settings: ServingSettings) -> Iterator[Callable[[Sequence[str]], bytes]]:
    """A function that answers texts as the server does, less the network.

    From the bytes of a request to those of its answer: the checks of the body, the queue and its threads, the preparation of
    the texts, the classifier as the server loads it, labels, figures and JSON.

    Parameters
    ----------
    folder : Path
        What :func:`reviewclf.registry.deployment.fetch_classifier` copied.
    settings : ServingSettings
        Threads and batches; limits of requests do not count here, and nobody needs a key.

    Raises
    ------
    RegistryError
        The server would refuse the model, or fails to answer with it.
    """
    settings = settings.model_copy(update={**_NO_LIMITS, "api_keys": None})
    classifier, _ = load(folder, threads=threads_of_model(settings))
    try_out(classifier, batch=1)
    metrics = Metrics(process=False)
    batcher = make_batcher(settings, metrics)
    predictor = _Sole(batcher, metrics, settings)
    predictor.served = Copy("measured", "measured", classifier)
    direct = {("POST", "/predict"): predictor.predict}
    door = edge.Edge(_nothing, metrics=metrics, paths=frozenset({"/predict"}), direct=direct)
    logger = logging.getLogger(edge.__name__)
    level = logger.level
    with asyncio.Runner() as runner:
        try:
            logger.setLevel(logging.WARNING)  # a line for each of some hundred requests says nothing
            runner.run(_start(batcher.start))
            yield lambda texts: runner.run(_ask(door, to_json({"texts": list(texts)})))
        finally:
            logger.setLevel(level)
            runner.run(batcher.stop())


async def _start(start: Callable[[], None]) -> None:
    start()


async def _ask(door: edge.Edge, body: bytes) -> bytes:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope: Scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    answer: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        answer.append(message)

    await door(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in answer)
    if answer[0]["status"] != 200:
        raise RegistryError(f"the server does not answer with it: {content.decode()[:300]}")
    return content


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """No other address is asked for."""
