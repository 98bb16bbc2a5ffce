"""Answers and errors as servers spell them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.parsing import parse_answer
from reviewclf.labeling.prompts import load_prompts
from reviewclf.llm.problems import ChatProblem, Kind, problem_in, problem_of
from reviewclf.llm.replies import read_reply, storable, strip_thoughts
from reviewclf.llm.ways import matching, names_in
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy
from tests.llm_server import completion

TAXONOMY = Taxonomy.load(load_settings(_env_file=None).taxonomy)
# 1 бытовая техника, 2 обувь, 3 одежда, 4 посуда ...
QUESTION = next(prompt.fill(TAXONOMY) for prompt in load_prompts() if prompt.order == "taxonomy")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("4", "4"),
        ("<think>обувь?</think>\n\n4", "4"),
        ("это обувь или одежда\n</think>\n\n4", "4"),
        ("<think>раз</think> нет, <think>два</think>4", "4"),
        ("<think>внешняя <think>внутренняя</think> мысль</think>4", "4"),
        ("<thinking>обувь</thinking>4", "4"),
        ("<THINK>обувь</THINK>4", "4"),
        ("<reasoning>обувь</reasoning>4", "4"),
        ("<thought>обувь</thought>4", "4"),
        ("<seed:think>обувь</seed:think>4", "4"),
        ("[THINK]обувь[/THINK]4", "4"),
        ("◁think▷обувь◁/think▷4", "4"),
        ("<|START_THINKING|>обувь<|END_THINKING|>4", "4"),
        ("<|begin_of_thought|>обувь<|end_of_thought|>4", "4"),
        ("<|channel|>analysis<|message|>обувь?<|end|><|start|>assistant<|channel|>final<|message|>4", "4"),
        ("<|channel|>final<|message|>4<|return|>", "4"),
        ("analysisПокупатель пишет про обувь. assistantfinal4", "4"),
        ("<|channel>thought\nобувь?<channel|>4", "4"),
        ("4 <think>проверю: обувь?</think>", "4"),
        ("4\n<think>проверю: обувь", "4"),
        ("<think>\nэто обувь, потому что", ""),
        ("[THINK]это обувь", ""),
        ("<|channel|>analysis<|message|>это обувь", ""),
        ("analysisЭто обувь, потому", ""),
        ("<think></think>", ""),
    ],
)
def test_what_stands_behind_the_thought_is_the_answer(content: str, answer: str) -> None:
    assert strip_thoughts(content).text == answer


@given(st.text(max_size=200))
def test_text_without_thoughts_is_the_answer_as_it_is(content: str) -> None:
    said = strip_thoughts(content)
    if not said.has_thought and "<|" not in content:
        assert said.text == content.strip()


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("3", "одежда"),
        ("3.", "одежда"),
        ("3. одежда", "одежда"),
        ("3. Одеж", "одежда"),
        ("**3**\n\nПояснение: в отзыве речь", "одежда"),
        ("Одежда", "одежда"),
        ("Категория: украшения и аксессуары", "украшения и аксессуары"),
        ('{"label": "3", "why": "потому', None),
        ('{"label": "3"} Пояснение: в', "одежда"),
        ("Хорошо, разберём. Обувь здесь точно ни при чём, потому что в отзыве говорится", None),
        ("Обувь здесь точно ни при чём, потому что", None),
        ("1. Сначала определим, о каком товаре", None),
        ("3. Обувь здесь", None),
        ('{"la', None),
        ("", None),
    ],
)
@pytest.mark.case(3)
def test_of_a_cut_answer_only_its_beginning_counts(answer: str, label: str | None) -> None:
    read = parse_answer(answer, QUESTION, is_cut=True)
    assert read.label == label
    assert read.is_unfinished == (label is None)
    if label is None:
        assert "REVIEWCLF_LLM__THINKING" in str(read.reason)


@pytest.mark.parametrize("answer", ["<answer>3</answer>", "Итак, не обувь. \\boxed{3}", "\\boxed{\\text{одежда}}"])
def test_answer_in_a_box_is_read(answer: str) -> None:
    assert parse_answer(answer, QUESTION).label == "одежда"


@pytest.mark.parametrize(
    ("content", "read", "has_thought"),
    [
        ([{"type": "text", "text": "3"}], "3", False),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "обувь"}]}, {"type": "text", "text": "3"}], "3", True),
        ([{"type": "thinking", "thinking": "обувь"}, {"type": "text", "text": "3"}], "3", True),
        ([{"type": "reasoning", "text": "обувь"}, {"type": "output_text", "text": "3"}], "3", True),
        ([{"text": "обувь", "thought": True}, {"text": "3"}], "3", True),
        (["3"], "3", False),
        ({"type": "text", "text": "3"}, "3", False),
        ([{"type": "text", "text": {"value": "3"}}], "3", False),
        ([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "3"}], "3", False),
        (None, "", False),
        ([], "", False),
    ],
)
@pytest.mark.case(46)
def test_content_in_parts_is_its_text(content: Any, read: str, has_thought: bool) -> None:
    reply = read_reply(completion(content))
    assert (reply.content, reply.has_thought) == (read, has_thought)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "reasoning_details", "thinking"])
def test_thought_in_a_field_of_its_own_is_no_answer(field: str) -> None:
    reply = read_reply(completion(None, finish="stop", **{field: "это обувь"}))
    assert (reply.content, reply.has_thought, reply.refusal) == ("", True, None)
    assert parse_answer(reply.content, QUESTION, has_thought=True).is_unfinished
    assert read_reply(completion("3", **{field: "это обувь"})).content == "3"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (completion(None, refusal="I can't"), "refused to answer: I can't"),
        (completion([{"type": "refusal", "refusal": "I can't"}]), "refused to answer: I can't"),
        (completion("", finish="content_filter"), "content filter"),
        (completion("3", finish="SAFETY"), "content filter"),
        (completion("", finish="blacklist"), "content filter"),
        (completion("", finish="sensitive"), "content filter"),
        (completion(None, finish="tool_calls", tool_calls=[{"function": {"name": "category"}}]), "called a tool"),
        (completion(None, finish="function_call", function_call={"name": "category", "arguments": {}}), "called a tool"),
        ({"choices": [{"finish_reason": "content_filter", "message": None}]}, "content filter"),
    ],
)
@pytest.mark.case(54)
def test_answers_that_are_none_say_why(body: Any, reason: str) -> None:
    assert reason in str(read_reply(body).refusal)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"choices": []}, Kind.FAILED),
        ({"choices": None}, Kind.FAILED),
        ({"choices": [None]}, Kind.FAILED),
        ({"choices": [{"finish_reason": "stop"}]}, Kind.FAILED),
        ({"choices": [{"finish_reason": "stop", "message": None}]}, Kind.FAILED),
        (completion("", finish="error"), Kind.FAILED),
        (completion("", finish="insufficient_system_resource"), Kind.FAILED),
        ({"error": {"message": "Rate limit exceeded", "code": 429}}, Kind.AWAY),
        ({"error": {"message": "Rate limit exceeded", "code": "429"}}, Kind.AWAY),
        ({"error": {"message": "x", "code": 503}, "choices": []}, Kind.AWAY),
        ({"error": "model is loading"}, Kind.AWAY),
        ({"error": {"message": "Upstream request failed", "type": "server_error", "code": None}}, Kind.AWAY),
        ({"object": "error", "message": "Only 4 allowed now", "code": 50002}, Kind.FAILED),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, Kind.CREDIT),
        ({"error": {"message": "Insufficient credits", "code": 402}}, Kind.CREDIT),
        ({"error": {"message": "No auth credentials found", "code": 401}}, Kind.KEY),
        ({"error": {"message": "m is not a valid model ID", "code": 400}}, Kind.MODEL),
        ({"error": {"message": "Input was flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}, Kind.FILTERED),
        ({"message": {"role": "assistant", "content": "3"}, "done": True}, Kind.ADDRESS),
        ("hello", Kind.ADDRESS),
        ([], Kind.ADDRESS),
        (None, Kind.ADDRESS),
        ({}, Kind.ADDRESS),
        (3, Kind.ADDRESS),
    ],
)
@pytest.mark.case(2)
def test_bodies_that_are_no_answers_are_told_apart(body: Any, kind: Kind) -> None:
    with pytest.raises(ChatProblem) as raised:
        read_reply(body)
    assert raised.value.kind is kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "error", "finish_reason", "usage", "code", "type", "text", "logprobs"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_an_answer_or_a_problem(body: Any) -> None:
    try:
        reply = read_reply(body)
    except ChatProblem:
        return
    assert isinstance(reply.content, str)
    assert reply.tokens_in >= 0
    assert reply.tokens_out >= 0


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        # OpenAI
        (429, {"error": {"message": "Rate limit reached for gpt in organization. Please try again in 20s."}}, Kind.AWAY),
        (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, Kind.CREDIT),
        (400, {"error": {"message": "Invalid prompt: flagged by our usage policy", "code": "invalid_prompt"}}, Kind.FILTERED),
        (
            400,
            {"error": {"message": "This model's maximum context length is 4096 tokens. Please reduce the length"}},
            Kind.TOO_LONG,
        ),
        (404, {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}, Kind.MODEL),
        (400, {"error": {"message": "Could not finish: max_tokens or model output limit was reached"}}, Kind.CUT),
        (400, {"error": {"message": "Unsupported parameter: 'logprobs' is not supported with this model."}}, Kind.REFUSED),
        (401, {"error": {"message": "Incorrect API key provided"}}, Kind.KEY),
        (
            400,
            {"error": {"message": "Incorrect API key provided: sk-x", "code": "invalid_api_key"}},
            Kind.KEY,
        ),
        # Azure
        (
            429,
            {"error": {"message": "Requests exceed the rate limit of your pricing tier. Please retry after 10 seconds."}},
            Kind.AWAY,
        ),
        (400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, Kind.FILTERED),
        # Groq, whose rate limit speaks of billing too
        (
            429,
            {"error": {"message": "Rate limit reached. Please try again in 7.66s. Upgrade at https://x/settings/billing"}},
            Kind.AWAY,
        ),
        # Gemini, likewise
        (
            429,
            [{"error": {"code": 429, "message": "You exceeded your current quota, check billing. Please retry in 32.5s."}}],
            Kind.AWAY,
        ),
        (
            429,
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota, please check your plan and billing details.",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22s"}],
                }
            },
            Kind.AWAY,
        ),
        (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}], Kind.KEY),
        # vLLM
        (400, {"object": "error", "message": "The model `x` does not exist.", "code": 400}, Kind.MODEL),
        (
            400,
            {"error": {"message": "'max_tokens' is too large: 64. This model's maximum context length is 1024 tokens"}},
            Kind.TOO_LONG,
        ),
        # Ollama
        (404, {"error": {"message": 'model "x" not found, try pulling it first'}}, Kind.MODEL),
        # DeepSeek
        (402, {"error": {"message": "Insufficient Balance"}}, Kind.CREDIT),
        (400, {"error": {"message": "Content Exists Risk"}}, Kind.FILTERED),
        # DashScope
        (
            400,
            {"error": {"message": "Input may contain inappropriate content", "code": "data_inspection_failed"}},
            Kind.FILTERED,
        ),
        (
            400,
            {"error": {"message": "Access denied, account is in good standing: Arrearage", "code": "Arrearage"}},
            Kind.CREDIT,
        ),
        # GigaChat, YandexGPT
        (402, {"status": 402, "message": "Payment Required"}, Kind.CREDIT),
        (429, {"error": {"message": "ai.textGenerationCompletionSessionsCount.count gauge quota limit exceed"}}, Kind.AWAY),
        # Anthropic
        (400, {"error": {"message": "Your credit balance is too low to access the API"}}, Kind.CREDIT),
        (529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, Kind.AWAY),
        # OpenRouter
        (404, {"error": {"message": "No endpoints found that support the requested parameters."}}, Kind.REFUSED),
        (
            403,
            {"error": {"message": "Key limit exceeded (total limit)", "code": 403}},
            Kind.CREDIT,
        ),
        # whatever stands in between
        (502, "<html><body>502 Bad Gateway</body></html>", Kind.AWAY),
        (404, "<html><body>404 Not Found</body></html>", Kind.ADDRESS),
        (404, {"detail": "Not Found"}, Kind.ADDRESS),
        (405, {"detail": "Method Not Allowed"}, Kind.ADDRESS),
        (403, "<html>Forbidden</html>", Kind.KEY),
        (400, "<html>The plain HTTP request was sent to HTTPS port</html>", Kind.ADDRESS),
        (413, "Payload Too Large", Kind.REFUSED),
        (422, {"detail": [{"loc": ["body", "top_logprobs"], "msg": "Extra inputs are not permitted"}]}, Kind.REFUSED),
        (500, {"error": {"message": "internal"}}, Kind.FAILED),
        (503, {"error": {"message": "down"}}, Kind.AWAY),
    ],
)
def test_errors_of_many_servers_are_told_apart(status: int, body: Any, kind: Kind) -> None:
    problem = problem_of(status, body)
    assert problem.kind is kind, problem.message


def test_thoughts_that_are_counted_in_the_total_alone_are_paid_for() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 402}
    assert read_reply({**completion("3"), "usage": usage}).tokens_out == 302


def test_content_that_is_json_already_is_read() -> None:
    assert parse_answer(read_reply(completion({"label": "3"})).content, QUESTION).label == "одежда"


def test_no_error_is_found_in_an_answer() -> None:
    assert problem_in(completion("3")) is None
    assert problem_in({**completion("3"), "error": None}) is None


@pytest.mark.parametrize(
    ("wanted", "listed", "found"),
    [
        ("m", ["models/m"], ["models/m"]),
        ("models/m", ["m"], ["m"]),
        ("m", ["openai/m", "x"], ["openai/m"]),
        ("Qwen/Qwen2-7B", ["/models/Qwen2-7B"], []),
        ("Qwen2-7B", ["/models/Qwen2-7B"], ["/models/Qwen2-7B"]),
        ("M", ["m"], ["m"]),
        ("m", ["m:latest"], ["m:latest"]),
        ("m:latest", ["m"], ["m"]),
        ("m", ["m:7b"], ["m:7b"]),
        ("m", ["m:7b", "m:14b"], []),
        ("m:7b", ["m:14b"], []),
        ("m", ["mm", "m-large", "other/mm"], []),
        ("gpt://folder/yandexgpt/latest", ["gpt://folder/yandexgpt-lite/latest"], []),
    ],
)
@pytest.mark.case(49)
def test_names_with_prefix_tag_or_other_case_mean_the_model(wanted: str, listed: list[str], found: list[str]) -> None:
    assert matching(wanted, listed) == found


@pytest.mark.parametrize(
    "listed",
    [
        {"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]},
        {"models": [{"name": "m", "model": "m"}]},
        [{"id": "m"}],
        {"data": ["m"]},
    ],
)
def test_lists_of_models_in_other_forms_are_read(listed: Any) -> None:
    assert names_in(listed)[0] == ["m"]


@pytest.mark.parametrize("listed", [None, "x", {}, {"data": None}, {"data": [None, 3, {"id": None}]}])
def test_list_of_models_that_names_none_names_none(listed: Any) -> None:
    assert names_in(listed)[0] == []


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_every_text_can_be_stored_and_stays_what_it_is(text: str) -> None:
    assert storable(text) == text


@pytest.mark.parametrize(("text", "stored"), [("а\ud800б", "а\ufffdб"), ("\ud83d\ude00", "😀"), ("\udc80", "\ufffd")])
def test_halves_of_characters_can_be_stored(text: str, stored: str) -> None:
    vote = Vote(text_hash="0", annotator="a", prompt="p", raw=text, reason=text)
    assert (vote.raw, vote.reason) == (stored, stored)
    assert Vote.model_validate_json(vote.model_dump_json()) == vote
