"""What a chat server has answered, read from the body of its reply: words, thoughts, refusals. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from reviewclf.llm.problems import ChatProblem, Kind, problem_in, problem_of, status_in

# What servers call the end of an answer; whatever is not listed counts as an answer that ended by itself.
_CUT = {"length", "max_tokens", "max_length", "max_output_tokens", "model_length", "model_context_window_exceeded"}
_FILTERED = {
    "content_filter", "content_filtered", "safety", "recitation", "blocklist", "blacklist", "prohibited_content", "spii",
    "sensitive", "guardrail", "guardrail_intervened",
}  # fmt: skip
_FAILED = {"error", "network_error", "abort", "aborted", "insufficient_system_resource", "overloaded", "cancelled"}
_TOOLS = {"tool_calls", "tool_call", "tool_use", "function_call"}

_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thought", "thoughts")
_PART_FIELDS = ("type", "text", "content", "value", "refusal")
_THOUGHT_PARTS = ("thinking", "reasoning", "thought", "redacted_thinking", "summary_text", "reasoning_text")


class Reply(NamedTuple):
    """An answer.

    Attributes
    ----------
    content : str
        What was said, with whatever thoughts stand in it.
    is_cut : bool
        It ended because there was no more room, not because all was said.
    has_thought : bool
        The model thought before it answered, there or in a field of its own.
    refusal : str or None
        Why there is no answer: the model or its server refused, a filter took it, it called a tool.
    is_final : bool
        False where asking again may bring an answer: the server failed on this question.
    tokens : list of dict
        The answer's tokens with their probabilities, as servers list them; empty where they do not.
    tokens_in, tokens_out : int
        Read and written; an estimate where the server does not say.
    seconds : float
        Time the answer took.
    """

    content: str
    is_cut: bool = False
    has_thought: bool = False
    refusal: str | None = None
    is_final: bool = True
    tokens: list[dict[str, Any]] = []  # noqa: RUF012 - never changed
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


def read_reply(body: Any, *, asked_characters: int = 0) -> Reply:
    """The answer in the body of a chat completion.

    Parameters
    ----------
    body : any
        The JSON of a reply with status 200.
    asked_characters : int
        Length of the messages, for an estimate where the server does not count tokens.

    Raises
    ------
    ChatProblem
        The body holds an error, no choice or no message, or is no chat completion at all.
    """
    if problem := problem_in(body):
        raise problem
    if not isinstance(body, Mapping) or "choices" not in body:
        raise ChatProblem(Kind.ADDRESS, f"it answers something else than a chat completion: {_shown(body)}")
    choices = body["choices"]
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        raise ChatProblem(Kind.FAILED, "the reply holds no choices")
    if error := choice.get("error"):
        raise problem_of(status_in(error), error)
    finish = str(choice.get("finish_reason") or choice.get("native_finish_reason") or "").casefold()
    if finish in _FAILED:
        raise ChatProblem(Kind.FAILED, f"the answer ended with finish_reason={finish}")
    message = choice.get("message") or choice.get("delta") or choice.get("text")
    if isinstance(message, str):
        message = {"content": message}
    elif message is None and finish in _CUT | _FILTERED | _TOOLS:
        message = {}
    if not isinstance(message, Mapping):
        raise ChatProblem(Kind.FAILED, "the choice holds no message")
    parts = list(_parts(message.get("content")))
    content = storable("".join(text for kind, text in parts if kind == "text"))
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    usage = body.get("usage")
    tokens_in = _count(usage, ("prompt_tokens", "input_tokens"), asked_characters)
    written = _count(usage, ("completion_tokens", "output_tokens"), sum(len(text) for _, text in parts))
    return Reply(
        content=content,
        is_cut=finish in _CUT,
        has_thought=_thought(message, parts, usage) or strip_thoughts(content).has_thought,
        refusal=_refusal(message, parts, content, finish),
        tokens=[token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else [],
        tokens_in=tokens_in,
        # Gemini and Grok count thoughts, which are paid for like words, in the total alone.
        tokens_out=max(written, _count(usage, ("total_tokens",), 0) - tokens_in),
    )


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    """Kind (text, thought or refusal) and words of each part of a message's content."""
    if isinstance(content, str):
        yield "text", content
    elif isinstance(content, list):
        for part in content:
            yield from _parts(part)
    elif isinstance(content, Mapping) and not any(name in content for name in _PART_FIELDS):
        # An answer in JSON that something on the way has read already.
        yield "text", json.dumps(content, ensure_ascii=False) if content else ""
    elif isinstance(content, Mapping):
        kind = str(content.get("type", "text")).casefold()
        words = next((content[name] for name in ("text", "content", "value", kind, "refusal") if content.get(name)), "")
        inner = list(_parts(words))
        if kind in _THOUGHT_PARTS or content.get("thought") is True or kind == "refusal":
            yield "refusal" if kind == "refusal" else "thought", "".join(text for _, text in inner)
        elif kind in ("text", "output_text"):
            yield from inner


def _thought(message: Mapping[str, Any], parts: list[tuple[str, str]], usage: Any) -> bool:
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    counted = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    return (
        any(bool(message.get(name)) for name in _THOUGHT_FIELDS)
        or any(kind == "thought" for kind, _ in parts)
        or (isinstance(counted, int) and counted > 0)
    )


def _refusal(message: Mapping[str, Any], parts: list[tuple[str, str]], content: str, finish: str) -> str | None:
    if finish in _FILTERED:
        return f"a content filter took the answer (finish_reason={finish})"
    if content.strip():
        return None
    said = message.get("refusal") or "".join(text for kind, text in parts if kind == "refusal")
    if said or finish == "refusal":
        return f"the model refused to answer: {_shown(said)}" if said else "the model refused to answer"
    calls = message.get("tool_calls") or message.get("function_call")
    if calls or finish in _TOOLS:
        return f"the model called a tool instead of answering: {_shown(calls)}"
    return None


def _count(usage: Any, names: tuple[str, ...], characters: int) -> int:
    if isinstance(usage, Mapping):
        for name in names:
            value = usage.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
                return int(value)
    # Russian words come in tokens of about three characters; a budget must not take what is not counted for free.
    return -(-characters // 3)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return storable(" ".join(text.split())[:200])


# -- thoughts ---------------------------------------------------------------------------------------------------------

_WORD = r"(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|working_out|seed:think)"
_OPENING = re.compile(rf"<\|?(?:begin_of_|start_)?{_WORD}\|?>|\[{_WORD}\]|◁{_WORD}▷|<\|?channel\|?>(?!final)\w+", re.IGNORECASE)
_CLOSING = re.compile(
    rf"</{_WORD}>|<\|?end_(?:of_)?{_WORD}\|?>|\[/{_WORD}\]|◁/{_WORD}▷|<channel\|>|(?:<\|?channel\|?>|^assistant)final\b",
    re.IGNORECASE | re.MULTILINE,
)
# A server that leaves special tokens out of the text writes the names of the channels without them.
_BARE_CHANNELS = re.compile(r"^\s*analysis(?=[^a-z\s]|[A-Z])(?P<thought>.*?)(?:assistantfinal(?P<answer>.*))?$", re.DOTALL)
_MARKS = re.compile(r"<\|(?:message|end|return|start|call|constrain)\|>(?:assistant\b)?")


class Said(NamedTuple):
    """An answer without the thoughts before it, whether there were any, and whether the last one did not come to its end."""

    text: str
    has_thought: bool
    is_open: bool


def strip_thoughts(content: str) -> Said:
    """Take a model's thoughts out of its answer.

    What stands behind the last end of a thought is the answer, whether or not the beginning of the thought was part of the
    text (some chat templates put it into the question). A thought that was begun and not ended has no answer behind it.
    """
    if bare := _BARE_CHANNELS.match(content):
        return Said((bare["answer"] or "").strip(), has_thought=True, is_open=bare["answer"] is None)
    ends = list(_CLOSING.finditer(content))
    rest = content[ends[-1].end() :] if ends else content
    opened = _OPENING.search(rest)
    before = rest[: opened.start()] if opened else rest
    first = _OPENING.search(content)
    if not before.strip() and first is not None:
        # The answer may have come first.
        before = content[: first.start()]
    return Said(_MARKS.sub(" ", before).strip(), has_thought=bool(ends) or opened is not None, is_open=opened is not None)


# -- JSON -------------------------------------------------------------------------------------------------------------


def folded_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its keys in lower case."""
    return {str(key).casefold(): value for key, value in content.items()}


# -- characters -------------------------------------------------------------------------------------------------------


def storable(text: str) -> str:
    """A text that UTF-8, JSON and Parquet can hold: pairs of surrogates are joined, halves become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


StorableText = Annotated[str, BeforeValidator(lambda value: storable(value) if isinstance(value, str) else value)]
"""Text of a model, which may hold any characters that JSON can spell, as a field of what is stored."""
