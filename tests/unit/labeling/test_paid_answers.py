"""Answers that were paid for: none is lost, none is paid for twice, and a budget counts all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.augmentation.generators import OpenAIGenerator
from reviewclf.augmentation.prompts import WritingRequest
from reviewclf.errors import AnnotatorUnavailableError, StoreError
from reviewclf.labeling.annotators.base import Review, Vote
from reviewclf.labeling.annotators.openai import OpenAIAnnotator
from reviewclf.labeling.asking import ask_all, forget_published, journaled_votes, vote_journal
from reviewclf.llm.budget import Budget
from reviewclf.settings import Settings, load_settings
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy
from tests.llm_server import Answer, ChatServer, completion, running, shown

TAXONOMY = Taxonomy.load(load_settings(_env_file=None).taxonomy)
LATER = timedelta(hours=2)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running() as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make_settings(server: ChatServer, **llm: Any) -> Settings:
    usual = {"backend": "openai", "model": "m", "base_url": server.url, "votes": 1, "max_retries": 0, "timeout_seconds": 5}
    return load_settings(_env_file=None, llm={**usual, **llm})


def ask(store: Store, server: ChatServer, n: int, **llm: Any) -> tuple[list[Vote], str | None]:
    options = make_settings(server, **llm)
    reviews = [Review(text_hash=f"{i:032x}", text=f"Платье {i}") for i in range(n)]
    return ask_all(store, [OpenAIAnnotator(options.llm, TAXONOMY)], reviews, options, known=set(), shards=1)


def spent(server: ChatServer) -> int:
    """Tokens that the server has taken for its answers: 102 each, as :func:`completion` says."""
    return 102 * len(server.asked)


# -- the budget -------------------------------------------------------------------------------------------------------


def test_budget_is_held_while_many_are_asked_at_once(store: Store, server: ChatServer) -> None:
    votes, stopped = ask(store, server, 200, max_tokens=7000, concurrency=16)
    assert spent(server) <= 7000
    assert len(votes) >= 60
    assert "REVIEWCLF_LLM__MAX_TOKENS=7000 is reached" in str(stopped)
    # Every answer that came is a vote, but the one to the question that no review is part of.
    assert len(votes) == len(server.asked) - 1


def test_budget_counts_what_earlier_attempts_have_spent(store: Store, server: ChatServer) -> None:
    """The server goes away again and again; each attempt asks about a few reviews, and once about none."""
    answers = 0

    def script(request: dict[str, Any]) -> Answer:
        nonlocal answers
        answers += 1
        return (503, {"error": {"message": "down"}}) if answers % 20 == 0 else (200, completion("3"))

    server.script = script
    for _ in range(20):
        try:
            votes, stopped = ask(store, server, 200, max_tokens=7000, concurrency=4)
        except AnnotatorUnavailableError:
            continue
        break
    assert "MAX_TOKENS" in str(stopped)
    paid = 102 * (answers - answers // 20)
    assert paid <= 7000
    assert 0 < len(votes) < 200
    # Another run begins anew.
    server.script = lambda request: (200, completion("3"))
    more, _ = ask(store, server, 200)
    assert len(more) == 200


def test_answers_without_a_label_and_cut_thoughts_count(store: Store, server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "Платье" not in shown(request) or "Платье 0" in shown(request):
            return 200, completion("3")
        if int(shown(request).split("Платье ")[1].split()[0].strip("<")) % 2:
            return 200, completion("не знаю")
        return 200, completion(None, finish="length", reasoning="хм")

    server.script = script
    _, stopped = ask(store, server, 200, max_tokens=3000)
    assert spent(server) <= 3000
    assert "MAX_TOKENS" in str(stopped)
    assert spent(server) >= 2800


def test_questions_that_no_review_is_part_of_count(store: Store, server: ChatServer) -> None:
    probable = completion("3", tokens=[("3", {"3": 0.9, "2": 0.05})])
    server.script = lambda request: (200, probable)
    votes, _ = ask(store, server, 100, max_tokens=1020, votes=2)
    assert spent(server) <= 1020
    # One to find out how to ask, three for the leaning of each of two questions.
    assert len(votes) == len(server.asked) - 7


def test_budget_that_is_spent_asks_nothing_more(store: Store, server: ChatServer) -> None:
    budget = Budget(make_settings(server).llm)

    def attempt() -> None:
        with budget.opened(store, "run"):
            budget.waste(900, 200)
            raise AnnotatorUnavailableError("away")

    with pytest.raises(AnnotatorUnavailableError):
        attempt()
    options = make_settings(server, max_tokens=1000)
    annotator = OpenAIAnnotator(options.llm, TAXONOMY)
    annotator.budget = Budget(options.llm)
    with annotator.budget.opened(store, "run"):
        assert list(annotator.annotate([Review(text_hash="0", text="Платье")])) == []
    assert server.asked == []
    anew = Budget(options.llm)
    with anew.opened(store, "run"):
        assert anew.tokens_in == 0


def test_server_that_does_not_count_is_not_free(store: Store, server: ChatServer) -> None:
    server.script = lambda request: (200, {**completion("3"), "usage": None})
    votes, stopped = ask(store, server, 200, max_tokens=7000)
    assert 0 < len(votes) < 200
    assert "MAX_TOKENS" in str(stopped)


def test_writer_holds_to_the_budget_and_loses_nothing(store: Store, server: ChatServer) -> None:
    server.script = lambda request: (200, completion('{"reviews": ["Сапоги хорошие"]}'))
    options = make_settings(server, max_tokens=1020)
    generator = OpenAIGenerator(options.llm, options.augmentation)
    requests = [WritingRequest(category="обувь", number=i, seed=1, n=1, system="пиши", user=str(i)) for i in range(50)]
    generator.budget = Budget(options.llm)
    with generator.budget.opened(store, "run"):
        written = []
        for answer in generator.write(requests):
            written.append(answer)
            generator.budget.spend(answer.tokens_in, answer.tokens_out)
    assert len(written) == len(server.asked)
    assert spent(server) <= 1020


# -- the journal ------------------------------------------------------------------------------------------------------

ODD = "\u2028 \u2029 \u0085 \x0b \x0c \x1c \x1d \x1e \r \ud800 \ud83d\ude00 \ufeff \x00"


def test_vote_with_any_characters_is_kept(store: Store) -> None:
    with vote_journal(store) as journal:
        for i, raw in enumerate([ODD, "3"]):
            journal.add(Vote(text_hash=str(i), annotator="a", prompt="p", label="обувь", raw=raw, reason=raw))
    kept = {vote.text_hash: vote.raw for vote in journaled_votes(store).values()}
    assert kept == {"0": ODD.replace("\ud800", "\ufffd").replace("\ud83d\ude00", "😀"), "1": "3"}


@given(st.lists(st.text(st.characters(categories=None), max_size=30), max_size=5))
@settings(max_examples=50)
def test_any_answers_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, answers: list[str]) -> None:
    store = Store(str(tmp_path_factory.mktemp("store")))
    votes = [Vote(text_hash=str(i), annotator="a", prompt="p", raw=raw) for i, raw in enumerate(answers)]
    with vote_journal(store) as journal:
        for vote in votes:
            journal.add(vote)
    assert list(journaled_votes(store).values()) == votes


def test_odd_characters_of_a_model_end_in_the_votes(store: Store, server: ChatServer) -> None:
    server.script = lambda request: (200, completion(f"3{ODD}"))
    votes, _ = ask(store, server, 3)
    assert [vote.label for vote in votes] == ["одежда"] * 3
    assert {vote.identity for vote in votes} == set(journaled_votes(store))
    again, _ = ask(store, server, 3)
    assert again == votes


def test_line_after_a_torn_one_is_kept(store: Store, tmp_path: Path) -> None:
    journal = vote_journal(store)
    journal.add(Vote(text_hash="0", annotator="a", prompt="p"))
    (path,) = (tmp_path / "store" / "journal" / "votes").iterdir()
    with path.open("ab") as file:
        file.write(b'{"text_hash": "torn", "annot')
    journal.add(Vote(text_hash="1", annotator="a", prompt="p"))
    assert [vote.text_hash for vote in journaled_votes(store).values()] == ["0", "1"]


def test_lines_that_cannot_be_read_are_moved_aside_and_told(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = vote_journal(store)
    journal.add(Vote(text_hash="0", annotator="a", prompt="p"))
    folder = tmp_path / "store" / "journal"
    (path,) = (folder / "votes").iterdir()
    broken = b'{"text_hash": "1", "annotator": 7, "raw": "\xff\xfe"}\n{"text_hash": "2", "annot'
    with path.open("ab") as file:
        file.write(broken)
    published = {("0", "a", "p", 0)}
    with caplog.at_level(logging.WARNING):
        assert forget_published(store, published, now=datetime.now(UTC) + LATER) == 1
    assert path.name in caplog.text
    (aside,) = (folder / "unreadable" / "votes").iterdir()
    assert aside.read_bytes() == broken + b"\n"
    assert not path.exists()


def test_damaged_byte_does_not_cost_a_vote(store: Store, tmp_path: Path) -> None:
    journal = vote_journal(store)
    journal.add(Vote(text_hash="0", annotator="a", prompt="p", label="обувь", raw="abc"))
    (path,) = (tmp_path / "store" / "journal" / "votes").iterdir()
    path.write_bytes(path.read_bytes().replace(b"abc", b"a\xffc"))
    assert [vote.label for vote in journaled_votes(store).values()] == ["обувь"]


def test_journal_that_cannot_be_read_at_all_is_an_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store" / "journal" / "votes" / "x.jsonl").mkdir(parents=True)
    with pytest.raises(StoreError):
        store.read_lines("journal/votes/x.jsonl")


def test_reviews_of_a_budget_are_shared_out_whole() -> None:
    options = load_settings(_env_file=None, llm={"max_reviews": 5}).llm
    for shards in (1, 2, 3, 5, 10):
        assert sum(Budget(options, shards=shards, shard=shard).room_for_reviews() or 0 for shard in range(shards)) == 5
