"""What servers really answer, from select to aggregate: what is kept, and what is asked again another night."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reviewclf import tables
from reviewclf.errors import AnnotatorUnavailableError, LabelingError
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import label as label_stages
from reviewclf.stages import review as review_stages
from reviewclf.store import Store
from tests.integration.test_stages import run_ingest, write_reviews
from tests.llm_server import Answer, ChatServer, completion, running, shown

REPLIES = json.loads((Path(__file__).parents[1] / "inputs" / "llm_replies.json").read_text(encoding="utf-8"))
TEXTS = [
    "Платье село после стирки",
    "Ботинки жмут в носке",
    "Чайник течёт с первого дня",
    "Тарелки пришли целые",
    "Полотенца колются",
    "Коляска скрипит на ходу",
    "Серьги потемнели за месяц",
    "Наушники хрипят на басах",
]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose reviews have been taken in, and labelled by stems alone."""
    folder = tmp_path_factory.mktemp("ingested")
    source = write_reviews(folder / "reviews.csv", [(str(i), text) for i, text in enumerate(TEXTS)])
    settings = load_settings(_env_file=None, home=folder / "home", source=source, gold=None, votes=None)
    run_ingest(settings)
    night(settings)
    return folder


@pytest.fixture
def settings(ingested: Path, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shutil.copytree(ingested / "home", tmp_path / "home")
    return load_settings(
        _env_file=None,
        home=tmp_path / "home",
        source=str(ingested / "reviews.csv"),
        gold=None,
        llm={"backend": "openai", "model": "m", "base_url": server.url, "votes": 1, "max_retries": 1, "timeout_seconds": 5},
    )


def night(settings: Settings) -> pd.DataFrame:
    """Label what is new; all votes of the model so far."""
    selected = label_stages.select(settings)
    shards: Any = selected.details["shards"]
    annotated = [label_stages.annotate(settings, selected, shard) for shard in shards]
    review_stages.collect(settings, selected, annotated)
    label_stages.aggregate(settings, selected, annotated)
    return votes_of(settings)


def votes_of(settings: Settings) -> pd.DataFrame:
    store = Store(settings.store_uri)
    votes = store.read_table(store.snapshot().keys("votes"), schema=tables.VOTE_SCHEMA).to_pandas()
    return votes[~votes["annotator"].str.startswith("keywords@")].reset_index(drop=True)


def entry(case: int, name: str) -> dict[str, Any]:
    return next(row for row in REPLIES if (row["case"], row["name"]) == (case, name))


def answered(case: int, name: str) -> Answer:
    row = entry(case, name)
    return row["status"], row["body"], {"Content-Type": row["type"]}


def play(server: ChatServer, case: int, name: str) -> None:
    """Let the server answer as one of the recorded replies, to every question it is meant for."""
    answer = answered(case, name)
    row = entry(case, name)
    if "GET" in row["to"]:
        server.models = answer
    if "POST" in row["to"]:
        server.script = lambda request: answer


def assert_all_asked_and_labelled(settings: Settings, server: ChatServer) -> None:
    """The next night, with a server that answers, asks about every review and labels it."""
    server.script = lambda request: (200, completion("3"))
    before = len(server.asked)
    votes = night(settings)
    assert len(votes) == len(TEXTS)
    assert set(votes["label"]) == {"одежда"}
    assert len(server.asked) - before >= len(TEXTS)


@pytest.mark.case(2)
@pytest.mark.parametrize("name", ["error inside 200", "no choices", "error inside the choice"])
def test_outage_inside_an_answer_is_an_outage(settings: Settings, server: ChatServer, name: str) -> None:
    play(server, 2, name)
    said = {"error inside 200": "Provider returned error", "error inside the choice": "Network connection lost"}
    with pytest.raises(AnnotatorUnavailableError, match=said.get(name, "no choices")):
        night(settings)
    assert len(votes_of(settings)) == 0
    assert_all_asked_and_labelled(settings, server)


@pytest.mark.case(2)
def test_outage_in_the_middle_keeps_what_was_answered(settings: Settings, server: ChatServer) -> None:
    failed = answered(2, "error inside 200")
    is_away = True

    def script(request: dict[str, Any]) -> Answer:
        late = any(word in shown(request) for word in ("Серьги", "Наушники"))
        return failed if late and is_away else (200, completion("3"))

    server.script = script
    with pytest.raises(AnnotatorUnavailableError):
        night(settings)
    is_away = False
    votes = night(settings)
    assert votes["label"].tolist() == ["одежда"] * len(TEXTS)
    for text in TEXTS[:6]:
        assert len(server.about(text)) == 1, "an answer that was paid for is not asked for again"


@pytest.mark.case(3)
def test_cut_thought_without_tags_is_no_label_and_is_asked_again(
    settings: Settings, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    play(server, 3, "cut-off thought without tags")
    assert len(night(settings)) == 0
    assert "REVIEWCLF_LLM__THINKING" in caplog.text
    # With nothing new the same reviews are asked about, night after night.
    before = len(server.asked)
    assert len(night(settings)) == 0
    assert len(server.asked) - before >= len(TEXTS)
    assert_all_asked_and_labelled(settings, server)


@pytest.mark.case(4)
def test_answer_behind_a_closing_tag_alone_is_read(settings: Settings, server: ChatServer) -> None:
    play(server, 4, "only the closing tag")
    votes = night(settings)
    assert votes["label"].tolist() == ["посуда"] * len(TEXTS)


@pytest.mark.case(39)
def test_limit_of_the_other_name_is_used(settings: Settings, server: ChatServer) -> None:
    refusal = answered(39, "max_tokens unsupported")
    server.script = lambda request: refusal if "max_tokens" in request else (200, completion("3"))
    assert night(settings)["label"].tolist() == ["одежда"] * len(TEXTS)
    assert sum("max_tokens" in request for request in server.asked) == 1
    assert all(request["max_completion_tokens"] > 0 for request in server.asked[1:])


@pytest.mark.case(40)
def test_temperature_that_may_not_be_chosen_is_left_out(settings: Settings, server: ChatServer) -> None:
    refusal = answered(40, "default temperature alone")
    server.script = lambda request: refusal if request.get("temperature", 1) != 1 else (200, completion("3"))
    assert night(settings)["label"].tolist() == ["одежда"] * len(TEXTS)
    assert sum("temperature" in request for request in server.asked) == 1


@pytest.mark.case(41)
@pytest.mark.parametrize("name", ["thought fills the answer", "open think tag, cut"])
def test_thought_that_fills_the_answer_is_told_with_the_setting_and_asked_again(
    settings: Settings, server: ChatServer, name: str
) -> None:
    play(server, 41, name)
    with pytest.raises(LabelingError, match=r"REVIEWCLF_LLM__THINKING=off.*REVIEWCLF_LLM__THINKING_TOKENS") as raised:
        night(settings)
    assert not isinstance(raised.value, AnnotatorUnavailableError)
    assert len(votes_of(settings)) == 0
    assert_all_asked_and_labelled(settings, server)


@pytest.mark.case(41)
def test_model_that_thinks_is_told_not_to(settings: Settings, server: ChatServer) -> None:
    cut = answered(41, "thought fills the answer")

    def script(request: dict[str, Any]) -> Answer:
        return (200, completion("3")) if request.get("reasoning_effort") == "none" else cut

    server.script = script
    assert night(settings)["label"].tolist() == ["одежда"] * len(TEXTS)
    assert all(request.get("reasoning_effort") == "none" for text in TEXTS for request in server.about(text))


@pytest.mark.case(41)
def test_model_that_cannot_but_think_gets_room(settings: Settings, server: ChatServer) -> None:
    cut = answered(41, "open think tag, cut")

    def script(request: dict[str, Any]) -> Answer:
        thought = "<think>\nЭто обувь? Нет, чайник.\n</think>\n\n1"
        return (200, completion(thought)) if request["max_tokens"] > 2000 else cut

    server.script = script
    assert night(settings)["label"].tolist() == ["бытовая техника"] * len(TEXTS)
    assert all(len(server.about(text)) == 1 for text in TEXTS)


@pytest.mark.case(42)
def test_filtered_review_is_a_matter_of_that_review_alone(settings: Settings, server: ChatServer) -> None:
    refusal = answered(42, "content filter")
    server.script = lambda request: refusal if "Серьги" in shown(request) else (200, completion("3"))
    votes = night(settings)
    assert votes["label"].notna().sum() == len(TEXTS) - 1
    assert "content management policy" in votes.loc[votes["label"].isna(), "reason"].item()
    assert len(server.about("Серьги")) == 1
    assert all(request["response_format"]["type"] == "json_schema" for request in server.asked)
    before = len(server.asked)
    night(settings)
    assert len(server.asked) == before, "a refused review is not asked about every night"


@pytest.mark.case(44)
def test_web_page_names_the_address(settings: Settings, server: ChatServer) -> None:
    play(server, 44, "a web page")
    server.script = lambda request: answered(44, "a web page")
    with pytest.raises(LabelingError, match=r"web page.*REVIEWCLF_LLM__BASE_URL") as raised:
        night(settings)
    assert not isinstance(raised.value, AnnotatorUnavailableError)


@pytest.mark.case(46)
def test_text_part_of_a_content_in_parts_is_read(settings: Settings, server: ChatServer) -> None:
    play(server, 46, "content in parts")
    assert night(settings)["label"].tolist() == ["одежда"] * len(TEXTS)


@pytest.mark.case(48)
def test_event_stream_is_told(settings: Settings, server: ChatServer) -> None:
    play(server, 48, "event stream")
    with pytest.raises(LabelingError, match=r"streams.*REVIEWCLF_LLM__BASE_URL"):
        night(settings)


@pytest.mark.case(49)
def test_prefix_in_the_list_of_models_is_no_other_model(settings: Settings, server: ChatServer) -> None:
    play(server, 49, "prefix in the list")
    assert night(settings)["label"].tolist() == ["одежда"] * len(TEXTS)
    assert {request["model"] for request in server.asked} == {"m"}


@pytest.mark.case(51)
def test_server_without_a_list_of_models_is_asked_all_the_same(settings: Settings, server: ChatServer) -> None:
    play(server, 51, "no list")
    assert night(settings)["label"].tolist() == ["одежда"] * len(TEXTS)


@pytest.mark.case(52)
def test_spent_account_fails_at_once_with_the_way_out(settings: Settings, server: ChatServer) -> None:
    play(server, 52, "out of credit")
    with pytest.raises(LabelingError, match=r"paid.*check your plan and billing details.*top up") as raised:
        night(settings)
    assert not isinstance(raised.value, AnnotatorUnavailableError)
    assert len(server.asked) == 1
    assert_all_asked_and_labelled(settings, server)


@pytest.mark.case(54)
@pytest.mark.parametrize(("name", "reason"), [("a tool call", "called a tool"), ("a refusal", "I can't help with that")])
def test_tool_call_and_refusal_say_so(settings: Settings, server: ChatServer, name: str, reason: str) -> None:
    reply = answered(54, name)
    server.script = lambda request: reply if "Серьги" in shown(request) else (200, completion("3"))
    votes = night(settings)
    assert len(votes) == len(TEXTS)
    assert reason in votes.loc[votes["label"].isna(), "reason"].item()
    before = len(server.asked)
    night(settings)
    assert len(server.asked) == before


@pytest.mark.parametrize("status", [400, 500])
def test_error_that_one_review_provokes_stays_with_it(settings: Settings, server: ChatServer, status: int) -> None:
    is_mended = False

    def script(request: dict[str, Any]) -> Answer:
        if "Серьги" in shown(request) and not is_mended:
            return status, {"error": {"message": "something went wrong"}}
        return 200, completion("3")

    server.script = script
    votes = night(settings)
    assert votes["label"].notna().sum() == len(TEXTS) - 1
    assert all(request["response_format"]["type"] == "json_schema" for request in server.asked)
    # A refusal is this review's own; an internal error may pass, and is asked about again.
    assert len(votes) == (len(TEXTS) if status == 400 else len(TEXTS) - 1)
    is_mended = True
    assert night(settings)["label"].notna().sum() == len(TEXTS) - (status == 400)
