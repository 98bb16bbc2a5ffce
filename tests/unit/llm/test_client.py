"""Finding out how a server wants to be asked, and what it costs when it does not answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import openai
import pytest

from reviewclf.augmentation.generators import OpenAIGenerator
from reviewclf.augmentation.prompts import WritingRequest
from reviewclf.errors import AnnotatorUnavailableError, LabelingError
from reviewclf.labeling.annotators.base import Review, Vote
from reviewclf.labeling.annotators.openai import OpenAIAnnotator
from reviewclf.labeling.asking import run_llm
from reviewclf.llm.problems import Kind, problem_of_error
from reviewclf.settings import AugmentationSettings, LLMSettings, load_settings
from reviewclf.taxonomy import Taxonomy
from tests.llm_server import Answer, ChatServer, completion, running, shown

TAXONOMY = Taxonomy.load(load_settings(_env_file=None).taxonomy)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running() as started:
        yield started


def make(server: ChatServer, **options: object) -> OpenAIAnnotator:
    usual = {"backend": "openai", "model": "m", "base_url": server.url, "votes": 1, "max_retries": 0, "timeout_seconds": 5}
    return OpenAIAnnotator(LLMSettings.model_validate({**usual, **options}), TAXONOMY)


def vote_on(annotator: OpenAIAnnotator, *texts: str) -> list[Vote]:
    reviews = [Review(text_hash=f"{i:032x}", text=text) for i, text in enumerate(texts)]
    return sorted(annotator.annotate(reviews), key=lambda vote: vote.text_hash)


def refused(message: str, status: int = 400, **more: Any) -> Answer:
    return status, {"error": {"message": message, "type": "invalid_request_error", **more}}


PROBABLE = completion("3", tokens=[("3", {"3": 0.9, "2": 0.05})])


def test_fewer_probabilities_are_asked_for_where_fewer_are_allowed(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if request.get("top_logprobs", 0) > 8:
            return refused("Invalid value for top_logprobs: must be less than or equal to 8", param="top_logprobs")
        return 200, PROBABLE

    server.script = script
    (vote,) = vote_on(make(server, calibrate=False), "Платье")
    assert vote.label == "одежда"
    assert vote.confidence != 0.7
    assert {request["top_logprobs"] for request in server.asked[1:]} == {8}


@pytest.mark.parametrize(
    "message",
    ["logprobs is not supported", 'Unknown name "logprobs": Cannot find field.', "This model does not support logprobs"],
)
def test_probabilities_that_are_refused_are_given_up(server: ChatServer, message: str) -> None:
    server.script = lambda request: refused(message) if "logprobs" in request else (200, completion("3"))
    assert [vote.confidence for vote in vote_on(make(server), "Платье", "Юбка")] == [0.7, 0.7]
    assert sum("logprobs" in request for request in server.asked) == 1


def test_probabilities_that_are_forbidden_are_given_up(server: ChatServer) -> None:
    forbidden = refused("You are not allowed to request logprobs from this model", 403)
    server.script = lambda request: forbidden if "logprobs" in request else (200, completion("3"))
    assert [vote.label for vote in vote_on(make(server), "Платье", "Юбка")] == ["одежда", "одежда"]


def test_server_that_demands_no_thinking_is_told_so(server: ChatServer) -> None:
    demand = refused("parameter.enable_thinking must be set to false for non-streaming calls")
    server.script = lambda request: (200, completion("3")) if request.get("enable_thinking") is False else demand
    for thinking in ("auto", "off"):
        (vote,) = vote_on(make(server, calibrate=False, thinking=thinking), "Платье")
        assert vote.label == "одежда"


def test_model_that_uses_its_room_up_without_a_word_is_told_not_to_think(server: ChatServer) -> None:
    silent = completion(None, finish="length")
    server.script = lambda request: (200, completion("3") if request.get("reasoning_effort") == "none" else silent)
    (vote,) = vote_on(make(server), "Платье")
    assert vote.label == "одежда"


@pytest.mark.parametrize(
    "page", [(403, "<html>Request blocked</html>"), (200, "<html>Request blocked</html>"), (404, "<html>Not found</html>")]
)
def test_firewall_that_takes_one_review_for_an_attack_costs_no_other(server: ChatServer, page: Answer) -> None:
    server.script = lambda request: page if "Юбка" in shown(request) else (200, completion("3"))
    votes = vote_on(make(server), "Платье", "Юбка", "Брюки")
    assert [(vote.label, vote.is_kept) for vote in votes] == [("одежда", True), (None, False), ("одежда", True)]


def test_redirects_without_end_name_the_address(server: ChatServer) -> None:
    server.script = lambda request: (307, "", {"Location": "/login"})
    with pytest.raises(LabelingError, match="REVIEWCLF_LLM__BASE_URL") as raised:
        vote_on(make(server), "Платье")
    assert not isinstance(raised.value, AnnotatorUnavailableError)


def test_page_of_maintenance_in_the_middle_of_a_run_is_an_outage(server: ChatServer) -> None:
    page: Answer = (200, "<html>We will be back soon</html>")
    server.script = lambda request: page if any("Юбка" in shown(asked) for asked in server.asked) else (200, completion("3"))
    with pytest.raises(AnnotatorUnavailableError, match="web page"):
        vote_on(make(server, concurrency=1), "Платье", "Юбка", "Брюки")


def test_server_that_gives_no_probabilities_is_not_asked_for_them_again(server: ChatServer) -> None:
    vote_on(make(server), "Платье", "Юбка")
    assert ["logprobs" in request for request in server.asked] == [True, False, False]


@pytest.mark.parametrize(
    ("parameter", "script"),
    [
        ("temperature", lambda request: "temperature" in request),
        ("max_tokens", lambda request: "max_tokens" in request),
        ("response_format", lambda request: "response_format" in request),
        ("logprobs", lambda request: "logprobs" in request),
        ("system", lambda request: request["messages"][0]["role"] == "system"),
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_what_is_refused_without_a_word_is_found_out_by_trying(
    server: ChatServer, parameter: str, script: Any, status: int
) -> None:
    server.script = lambda request: refused("bad request", status) if script(request) else (200, PROBABLE)
    votes = vote_on(make(server, max_retries=5, calibrate=False), "Платье", "Юбка")
    assert [vote.label for vote in votes] == ["одежда", "одежда"]
    assert len(server.asked) < 16
    last = server.asked[-1]
    kept = {"temperature", "response_format", "logprobs"} - {parameter}
    assert kept <= set(last), "nothing is given up but what was refused"
    assert not script(last)


def test_system_message_that_is_refused_stands_before_the_question(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if request["messages"][0]["role"] == "system":
            return refused("System role not supported", 500)
        return 200, completion("3")

    server.script = script
    assert vote_on(make(server), "Платье")[0].label == "одежда"
    assert "одежда" in server.asked[-1]["messages"][0]["content"]
    assert "Платье" in server.asked[-1]["messages"][0]["content"]


def test_everything_that_is_refused_at_once_is_left_out(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        extra = set(request) - {"model", "messages", "max_completion_tokens", "stream"}
        return (
            refused(f"Unrecognized request argument supplied: {', '.join(sorted(extra))}") if extra else (200, completion("3"))
        )

    server.script = script
    assert vote_on(make(server), "Платье")[0].label == "одежда"


def test_server_that_refuses_everything_says_why(server: ChatServer) -> None:
    server.script = lambda request: refused("we do not serve you")
    with pytest.raises(LabelingError, match="refused the question: we do not serve you"):
        vote_on(make(server), "Платье")


def test_limit_that_is_too_low_is_raised(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if request["max_tokens"] < 30:
            return refused("max_tokens must be at least 30", param="max_tokens")
        return 200, completion("3")

    server.script = script
    assert vote_on(make(server), "Платье")[0].label == "одежда"
    assert server.asked[-1]["max_tokens"] >= 30


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "'max_tokens' is too large: 64. This model's maximum context length is 1024 tokens",
        "the request exceeds the available context size",
        "Content Exists Risk",
    ],
)
def test_text_that_is_refused_changes_nothing_for_others(server: ChatServer, message: str) -> None:
    server.script = lambda request: refused(message) if "плохой" in shown(request) else (200, PROBABLE)
    votes = vote_on(make(server, calibrate=False), "Платье", "плохой", "Юбка")
    assert [vote.label for vote in votes] == ["одежда", None, "одежда"]
    assert message in str(votes[1].reason)
    assert votes[1].is_kept
    assert len(server.about("плохой")) == 1
    assert {request["response_format"]["type"] for request in server.asked} == {"json_schema"}
    assert all("logprobs" in request for request in server.asked)


def test_way_that_helps_no_review_is_not_taken(server: ChatServer) -> None:
    """One review is refused with words that name a parameter, and without the parameter too."""
    bad = refused("grammar: response_format cannot be compiled")
    server.script = lambda request: bad if "плохой" in shown(request) else (200, PROBABLE)
    votes = vote_on(make(server, concurrency=1, calibrate=False), "Платье", "плохой", "Юбка")
    assert [vote.label for vote in votes] == ["одежда", None, "одежда"]
    assert server.about("Юбка")[0]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("quiet", "is_quiet"),
    [
        ("vLLM", lambda request: (request.get("chat_template_kwargs") or {}).get("enable_thinking") is False),
        ("OpenAI", lambda request: request.get("reasoning_effort") == "minimal"),
        ("DeepSeek", lambda request: request.get("thinking") == {"type": "disabled"}),
        ("OpenRouter", lambda request: request.get("reasoning") == {"enabled": False}),
        ("DashScope", lambda request: request.get("enable_thinking") is False),
        ("Qwen3", lambda request: shown(request).endswith("/no_think")),
    ],
)
@pytest.mark.case(41)
def test_every_way_not_to_think_is_tried(server: ChatServer, quiet: str, is_quiet: Any) -> None:
    thought = completion(None, finish="length", reasoning_content="Хм")

    def script(request: dict[str, Any]) -> Answer:
        if is_quiet(request):
            return 200, completion("3")
        if "think" in request:
            return refused("Unrecognized request argument supplied: think")
        return 200, thought

    server.script = script
    (vote,) = vote_on(make(server), "Платье")
    assert vote.label == "одежда"
    assert len(server.about("Платье")) == 1
    assert is_quiet(server.about("Платье")[0]), quiet


def test_thinking_that_is_wanted_gets_room_and_is_read_behind_the_thought(server: ChatServer) -> None:
    content = "<think>Это 2? Нет, платье.</think>\n3"
    tokens = [
        ("<think>", {"<think>": 1.0}),
        ("2", {"2": 0.9, "3": 0.1}),
        ("</think>", {"</think>": 1.0}),
        ("3", {"3": 0.8, "1": 0.1}),
    ]
    server.script = lambda request: (200, completion(content, tokens=tokens))
    (vote,) = vote_on(make(server, thinking="on", thinking_tokens=500), "Платье")
    assert vote.label == "одежда"
    assert vote.confidence == pytest.approx(0.8)
    assert all(request["max_tokens"] >= 500 for request in server.asked)
    assert vote.prompt != make(server).expected(Review(text_hash="0", text=""))[0][1]


def test_thinking_that_is_not_wanted_is_said_at_once_and_given_up_where_that_is_refused(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "chat_template_kwargs" in request:
            return refused("Unrecognized request argument supplied: chat_template_kwargs")
        return 200, completion("3")

    server.script = script
    assert vote_on(make(server, thinking="off"), "Платье")[0].label == "одежда"
    assert "chat_template_kwargs" in server.asked[0]
    assert "chat_template_kwargs" not in server.asked[-1]


def test_single_cut_thought_is_left_for_another_time(server: ChatServer) -> None:
    cut = completion(None, finish="length", reasoning="Хм")
    server.script = lambda request: (200, cut if "Серьги" in shown(request) else completion("3"))
    votes = vote_on(make(server), "Платье", "Серьги")
    assert [(vote.label, vote.is_kept) for vote in votes] == [("одежда", True), (None, False)]
    assert "REVIEWCLF_LLM__THINKING" in str(votes[1].reason)


def test_answers_that_are_all_cut_end_the_asking(server: ChatServer) -> None:
    server.script = lambda request: (200, completion("Хорошо, разберём", finish="length"))
    with pytest.raises(LabelingError, match=r"none of the first 20 answers.*REVIEWCLF_LLM__THINKING"):
        vote_on(make(server, concurrency=1), *(f"Платье {i}" for i in range(100)))
    assert len(server.asked) < 30


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"error": {"message": "Rate limit exceeded", "code": 429}}),
        (200, {"choices": []}),
        (200, completion("", finish="error")),
        (200, '{"id": "1", "choices": [{"mess'),
        (200, ""),
        (429, {"error": {"message": "busy"}}, {"Retry-After": "0"}),
        (502, "<html>Bad Gateway</html>", {"Content-Type": "text/html"}),
        (500, {"error": {"message": "internal"}}),
    ],
)
@pytest.mark.case(2)
def test_failure_that_passes_is_asked_again(server: ChatServer, answer: Answer) -> None:
    failed: set[str] = set()

    def script(request: dict[str, Any]) -> Answer:
        if shown(request) in failed:
            return 200, completion("3")
        failed.add(shown(request))
        return answer

    server.script = script
    assert [vote.label for vote in vote_on(make(server, max_retries=2), "Платье", "Юбка")] == ["одежда", "одежда"]


def test_server_says_how_long_to_wait(server: ChatServer) -> None:
    asked: list[float] = []

    def script(request: dict[str, Any]) -> Answer:
        asked.append(time.monotonic())
        return (429, {"error": {"message": "slow down"}}, {"Retry-After": "2"}) if len(asked) == 1 else (200, completion("3"))

    server.script = script
    vote_on(make(server, max_retries=1), "Платье")
    assert asked[1] - asked[0] >= 2.0


def test_wait_that_is_too_long_is_left_to_the_next_attempt(server: ChatServer) -> None:
    server.script = lambda request: (429, {"error": {"message": "daily limit"}}, {"Retry-After": "7200"})
    started = time.monotonic()
    with pytest.raises(AnnotatorUnavailableError):
        vote_on(make(server, max_retries=5), "Платье")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}),
        (402, {"error": {"message": "Insufficient Balance"}}),
        (200, {"error": {"message": "Insufficient credits", "code": 402}}),
        (403, {"error": {"message": "Your team has used all available credits"}}),
    ],
)
@pytest.mark.case(52)
def test_spent_account_is_not_waited_for(server: ChatServer, answer: Answer) -> None:
    server.script = lambda request: answer
    with pytest.raises(LabelingError, match="top up") as raised:
        vote_on(make(server, max_retries=5), "Платье")
    assert type(raised.value) is LabelingError
    assert len(server.asked) == 1


@pytest.mark.parametrize("base_url", ["127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "https://127.0.0.1:{port}/v1"])
def test_wrong_address_is_not_waited_for(server: ChatServer, base_url: str) -> None:
    address = base_url.format(port=server.http.server_port)
    with pytest.raises(LabelingError, match="REVIEWCLF_LLM__BASE_URL") as raised:
        vote_on(make(server, base_url=address, max_retries=5), "Платье")
    assert not isinstance(raised.value, AnnotatorUnavailableError)


@pytest.mark.parametrize(
    ("base_url", "code", "kind"),
    [
        ("https://api.opneai.com/v1", socket.EAI_NONAME, Kind.ADDRESS),
        # The resolver itself does not answer, and a service beside this one that is being started anew.
        ("https://api.openai.com/v1", socket.EAI_AGAIN, Kind.AWAY),
        ("http://vllm:8000/v1", socket.EAI_NONAME, Kind.AWAY),
    ],
)
def test_name_that_nobody_has_is_told_from_a_network_that_is_away(base_url: str, code: int, kind: Kind) -> None:
    error = openai.APIConnectionError(request=httpx.Request("POST", base_url))  # type: ignore[arg-type]
    error.__cause__ = httpx.ConnectError("no connection")
    error.__cause__.__cause__ = socket.gaierror(code, "no such name")
    assert problem_of_error(error, LLMSettings(base_url=base_url)).kind is kind


def test_time_of_day_to_wait_for_is_read(server: ChatServer) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.script = lambda request: (429, {"error": {"message": "daily limit"}}, {"Retry-After": until})
    started = time.monotonic()
    with pytest.raises(AnnotatorUnavailableError):
        vote_on(make(server, max_retries=5), "Платье")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [404, 405, 501, 403, 400])
@pytest.mark.case(51)
def test_list_of_models_is_not_needed(server: ChatServer, status: int) -> None:
    server.models = (status, {"detail": "no"})
    assert vote_on(make(server), "Платье")[0].label == "одежда"


def test_page_instead_of_a_list_is_no_matter_where_questions_are_answered(server: ChatServer) -> None:
    server.models = (200, "<!doctype html><html></html>", {"Content-Type": "text/html"})
    assert vote_on(make(server), "Платье")[0].label == "одежда"


@pytest.mark.parametrize(
    "answer",
    [
        (200, "<html>login</html>", {"Content-Type": "text/html; charset=utf-8"}),
        (200, "<html>login</html>"),
        (200, "data: {}\n\n", {"Content-Type": "text/event-stream"}),
        (200, '"a string"'),
        (200, "[]"),
        (404, {"detail": "Not Found"}),
        (405, {"detail": "Method Not Allowed"}),
    ],
)
@pytest.mark.case(44)
def test_what_is_no_chat_server_names_the_address(server: ChatServer, answer: Answer) -> None:
    server.script = lambda request: answer
    with pytest.raises(LabelingError, match="REVIEWCLF_LLM__BASE_URL") as raised:
        vote_on(make(server, max_retries=5), "Платье")
    assert not isinstance(raised.value, AnnotatorUnavailableError)
    assert len(server.asked) <= 2


def test_listed_spelling_is_used_where_the_server_does_not_know_the_other(server: ChatServer) -> None:
    server.models = (200, {"data": [{"id": "m:7b"}]})

    def script(request: dict[str, Any]) -> Answer:
        if request["model"] == "m:7b":
            return 200, completion("3")
        return 404, {"error": {"message": f"model '{request['model']}' not found"}}

    server.script = script
    (vote,) = vote_on(make(server), "Платье")
    assert (vote.label, vote.annotator) == ("одежда", "m@main")


def test_model_that_is_not_listed_is_used_where_the_server_tells_names_apart(server: ChatServer) -> None:
    server.models = (200, {"data": [{"id": "base"}]})

    def script(request: dict[str, Any]) -> Answer:
        if request["model"] == "m":
            return 200, completion("3")
        return 404, {"error": {"message": "DeploymentNotFound"}}

    server.script = script
    assert vote_on(make(server), "Платье")[0].label == "одежда"


def test_timeout_names_its_settings(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        time.sleep(0.5)
        return 200, completion("3")

    server.script = script
    with pytest.raises(AnnotatorUnavailableError, match=r"REVIEWCLF_LLM__TIMEOUT_SECONDS.*REVIEWCLF_LLM__CONCURRENCY"):
        vote_on(make(server, timeout_seconds=0.1), "Платье")


def test_key_of_letters_that_no_header_holds_is_told(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ключ")
    with pytest.raises(LabelingError, match="OPENAI_API_KEY"):
        vote_on(make(server), "Платье")


def test_answers_in_flight_are_kept_when_one_fails(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "Серьги" in shown(request):
            time.sleep(0.1)
            return 503, {"error": {"message": "down"}}
        if "[отзыв]" not in shown(request):
            time.sleep(0.6)
        return 200, completion("3")

    server.script = script
    reviews = [Review(text_hash=str(i), text=text) for i, text in enumerate(["Платье", "Серьги", "Юбка"])]
    answers = iter(make(server, concurrency=3).annotate(reviews))
    assert {next(answers).text_hash, next(answers).text_hash} == {"0", "2"}
    with pytest.raises(AnnotatorUnavailableError):
        next(answers)


def test_run_llm_hands_over_what_was_paid_for(server: ChatServer) -> None:
    down = (503, {"error": {"message": "down"}})
    server.script = lambda request: down if "Серьги" in shown(request) else (200, completion("3"))
    settings = load_settings(
        _env_file=None,
        llm={"backend": "openai", "model": "m", "base_url": server.url, "votes": 1, "max_retries": 0, "concurrency": 1},
    )
    with pytest.raises(AnnotatorUnavailableError) as raised:
        run_llm(["Платье", "Юбка", "Серьги"], settings=settings)
    assert raised.value.votes["label"].tolist() == ["одежда", "одежда"]
    assert "attribute votes" in raised.value.__notes__[0]


# -- writing ----------------------------------------------------------------------------------------------------------


def writer(server: ChatServer, **options: object) -> OpenAIGenerator:
    usual = {
        "backend": "openai",
        "model": "m",
        "base_url": server.url,
        "max_retries": 5,
        "timeout_seconds": 5,
        "concurrency": 1,
    }
    return OpenAIGenerator(LLMSettings.model_validate({**usual, **options}), AugmentationSettings())


def requests(n: int) -> list[WritingRequest]:
    return [WritingRequest(category="обувь", number=i, seed=1, n=2, system="пиши", user=f"запрос {i}") for i in range(n)]


REVIEWS = '{"reviews": ["Сапоги хорошие", "Туфли жмут"]}'


@pytest.mark.parametrize("parameter", ["seed", "temperature", "max_tokens", "response_format"])
def test_writer_leaves_out_what_is_refused(server: ChatServer, parameter: str) -> None:
    answer = refused(f"Unsupported parameter: '{parameter}'", 500, param=parameter)
    server.script = lambda request: answer if parameter in request else (200, completion(REVIEWS))
    written = list(writer(server).write(requests(3)))
    assert [answer.number for answer in written] == [0, 1, 2]
    assert len(server.asked) <= 6


@pytest.mark.parametrize(
    "content",
    [f"<think>напишу два отзыва: [раз, два]</think>{REVIEWS}", f"напишу два\n</think>\n{REVIEWS}", f"Вот:\n{REVIEWS}"],
)
def test_thoughts_of_a_writer_are_no_reviews(server: ChatServer, content: str) -> None:
    server.script = lambda request: (200, completion(content))
    (written,) = writer(server).write(requests(1))
    assert written.texts == ("Сапоги хорошие", "Туфли жмут")


def test_writer_keeps_whole_reviews_of_a_cut_answer_and_asks_again_where_there_is_none(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "запрос 1" in shown(request):
            return 200, completion('{"reviews": ["Сапоги хорошие", "Туф', finish="length")
        if "запрос 2" in shown(request):
            return 200, completion("Надо написать отзывы.\nНачну с сапог", finish="length")
        return 200, completion(REVIEWS)

    server.script = script
    written = {answer.number: answer for answer in writer(server).write(requests(4))}
    assert sorted(written) == [0, 1, 3]
    assert written[1].texts == ("Сапоги хорошие",)


@pytest.mark.case(2)
def test_outage_inside_an_answer_is_an_outage_for_a_writer_too(server: ChatServer) -> None:
    server.script = lambda request: (200, {"error": {"message": "Provider returned error", "code": 429}})
    with pytest.raises(AnnotatorUnavailableError, match="Provider returned error"):
        list(writer(server, max_retries=1).write(requests(1)))


@pytest.mark.case(42)
def test_refused_request_is_a_matter_of_that_request_alone(server: ChatServer) -> None:
    answer = refused("flagged by the content filter", code="content_filter")
    server.script = lambda request: answer if "запрос 1" in shown(request) else (200, completion(REVIEWS))
    written = {answer.number: answer for answer in writer(server).write(requests(3))}
    assert [len(written[i].texts) for i in range(3)] == [2, 0, 2]
    assert "content filter" in str(written[1].raw)
    assert {request["response_format"]["type"] for request in server.asked} == {"json_schema"}
