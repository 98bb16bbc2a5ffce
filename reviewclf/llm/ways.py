"""How a server wants to be asked: what a request says beside its words, and the next simpler way where one is refused. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from reviewclf.llm.problems import ChatProblem

# Of answers held to a form the strictest first. The choice is vLLM's own; other servers may take it without a word and not
# do it.
FORMS = ("choice", "json_schema", "json_object", "none")

# How servers are told not to think: vLLM, SGLang and llama.cpp; OpenAI, Gemini and Ollama, in two spellings; DeepSeek, GLM and
# Kimi; OpenRouter; DashScope and SiliconFlow; Ollama again. Qwen3 reads it in the message itself.
QUIET: dict[str, dict[str, Any]] = {
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    "reasoning_effort none": {"reasoning_effort": "none"},
    "reasoning_effort minimal": {"reasoning_effort": "minimal"},
    "thinking": {"thinking": {"type": "disabled"}},
    "reasoning": {"reasoning": {"enabled": False}},
    "enable_thinking": {"enable_thinking": False},
    "think": {"think": False},
    "/no_think": {},
}

_TOP = 20
# What servers allow that allow fewer than twenty.
_FEWER = 5


@dataclass(frozen=True)
class ChatRequest:
    """What a server is asked, before it is known in which way it wants to be asked.

    Attributes
    ----------
    system, user : str
        The messages.
    form : str
        Name of the answer's form.
    properties : dict
        JSON schemas of the fields of the answer, all of which it must have.
    tokens : callable
        Room for the answer by the way it is held to its form, and whether probabilities come with it.
    temperature : float
        Of sampling.
    choices : sequence of str
        Codes of which the answer is one.
    seed : int or None
        Of sampling.
    """

    system: str
    user: str
    form: str
    properties: Mapping[str, Any]
    tokens: Callable[[str, bool], int]
    temperature: float = 0.0
    choices: Sequence[str] = ()
    seed: int | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        required = list(self.properties)
        return {"type": "object", "properties": self.properties, "required": required, "additionalProperties": False}


@dataclass(frozen=True)
class Ways:
    """How a server is asked.

    Attributes
    ----------
    models : tuple of str
        Names to ask for; the first is used, the others are other spellings of it.
    forms : tuple of str
        Of :data:`FORMS`; the first is used.
    limit : str or None
        The parameter that limits the answer's length.
    least_tokens : int
        The smallest limit that the server takes.
    probabilities : int
        How many of the likeliest tokens are asked for; 0: none.
    has_temperature, has_seed, has_system : bool
        Whether these are sent; without a system message its words stand before the user's.
    quiet : str or None
        Of :data:`QUIET`: how it is told not to think.
    room : int
        Tokens for thoughts before the answer.
    """

    models: tuple[str, ...]
    forms: tuple[str, ...] = FORMS[1:]
    limit: str | None = "max_tokens"
    least_tokens: int = 1
    probabilities: int = _TOP
    has_temperature: bool = True
    has_seed: bool = True
    has_system: bool = True
    quiet: str | None = None
    room: int = 0

    def arguments(self, request: ChatRequest) -> dict[str, Any]:
        """Arguments of the client's ``chat.completions.create``."""
        user = f"{request.user}\n/no_think" if self.quiet == "/no_think" else request.user
        if self.has_system:
            messages = [{"role": "system", "content": request.system}, {"role": "user", "content": user}]
        else:
            messages = [{"role": "user", "content": f"{request.system}\n\n{user}"}]
        arguments: dict[str, Any] = {"model": self.models[0], "messages": messages, "stream": False}
        extra: dict[str, Any] = dict(QUIET[self.quiet]) if self.quiet else {}
        form = self.form(request)
        if form == "choice":
            extra["structured_outputs"] = {"choice": list(request.choices)}
        elif form == "json_schema":
            schema = {"name": request.form, "strict": True, "schema": request.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form == "json_object":
            # llama.cpp holds the answer to the schema, others to JSON at least.
            extra["response_format"] = {"type": "json_object", "schema": request.schema}
        if self.has_temperature:
            arguments["temperature"] = request.temperature
        if self.has_seed and request.seed is not None:
            arguments["seed"] = request.seed
        if self.probabilities:
            arguments.update(logprobs=True, top_logprobs=self.probabilities)
        if self.limit is not None:
            arguments[self.limit] = max(self.least_tokens, request.tokens(form, bool(self.probabilities)) + self.room)
        if extra:
            arguments["extra_body"] = extra
        return arguments

    def form(self, request: ChatRequest) -> str:
        """The form that this question is held to."""
        return next(form for form in self.forms if request.choices or form != "choice")


def simpler(ways: Ways, problem: ChatProblem) -> Ways | None:
    """The next way to ask where a server names what it refuses; None where it names nothing that could be left out."""
    for about in (problem.param, problem.about):
        for names, step in _STEPS:
            if names.search(about) and (other := _changed(ways, step, problem.about)) is not None:
                return other
    return None


def alternatives(ways: Ways) -> Iterator[Ways]:
    """Ways to try where a server refuses without saying what: each thing left out by itself, then all of them."""
    for _, step in _STEPS:
        other = _changed(ways, step, "")
        while other is not None:
            yield other
            # Of the forms every one is tried, of the rest the first other way.
            other = _changed(other, step, "") if step is _looser else None
    yield plainest(ways)
    yield dataclasses.replace(plainest(ways), limit=None)


def plainest(ways: Ways) -> Ways:
    """Nothing but model, message and length."""
    return dataclasses.replace(
        ways, forms=ways.forms[-1:], probabilities=0, has_temperature=False, has_seed=False, has_system=False, quiet=None
    )


def is_misunderstanding(problem: ChatProblem) -> bool:
    """Whether a server that answers 500 rather means that it does not know what the request asks for."""
    return any(names.search(problem.about) for names, _ in _STEPS) or "validation error" in problem.about


_Step: TypeAlias = Callable[[Ways, str], dict[str, Any]] | dict[str, Any]


def _changed(ways: Ways, step: _Step, about: str) -> Ways | None:
    """The ways after a step; None where it changes nothing."""
    other = dataclasses.replace(ways, **(step(ways, about) if callable(step) else step))
    return None if other == ways else other


def _fewer(ways: Ways, about: str) -> dict[str, Any]:
    allowed = [int(number) for number in re.findall(r"(?<![\d.])\d{1,2}(?![\d.])", about)]
    usual = _FEWER if ways.probabilities > _FEWER else 0
    return {"probabilities": max((number for number in allowed if 0 < number < ways.probabilities), default=usual)}


def _other_limit(ways: Ways, about: str) -> dict[str, Any]:
    """Another name for the limit, or a higher one where it is too low."""
    if found := re.search(r"(?:at least|minimum|greater than or equal to|>=)\D{0,30}(\d{1,4})\b", about):
        return {"least_tokens": max(int(found[1]), ways.least_tokens)}
    return {"limit": "max_completion_tokens" if ways.limit == "max_tokens" else None}


def _looser(ways: Ways, _about: str) -> dict[str, Any]:
    return {"forms": ways.forms[1:] or ways.forms}


def _quieter(_ways: Ways, about: str) -> dict[str, Any]:
    """DashScope's models think by default, and must be told not to where an answer is not streamed."""
    return {"quiet": "enable_thinking"} if about else {}


# What a refusal names, and what is then asked otherwise. The longer name stands before the shorter one that it holds.
_STEPS: tuple[tuple[re.Pattern[str], _Step], ...] = (
    (re.compile(r"top_?logprobs"), _fewer),
    (re.compile(r"logprob|probabilities"), {"probabilities": 0}),
    (re.compile(r"max_(?:completion_|output_)?tokens|maxoutputtokens"), _other_limit),
    (re.compile(r"temperature"), {"has_temperature": False}),
    (
        re.compile(r"response_?format|structured.?outputs?|guided|grammar|json.?(?:schema|object|mode)|\bschema\b|\bstrict\b"),
        _looser,
    ),
    (re.compile(r"\bseed\b"), {"has_seed": False}),
    (re.compile(r"enable_thinking\W{0,3}(?:must|should|has to|needs? to).{0,20}false"), _quieter),
    (
        re.compile(r"chat_template_kwargs|enable_thinking|reasoning|\bthink(?:ing)?\b|extra.?(?:body|fields?|inputs?)"),
        {"quiet": None},
    ),
    (
        re.compile(r"system.{0,20}(?:role|message|prompt)|role.{0,20}system|developer instruction|roles must alternate"),
        {"has_system": False},
    ),
)


# -- names of models, which servers list with prefixes and tags that people leave out ----------------------------------


def names_in(listed: Any) -> tuple[list[str], set[str]]:
    """Names and makers in a server's list of models: OpenAI's form, Ollama's, or a bare list."""
    if isinstance(listed, Mapping):
        listed = listed.get("data") or listed.get("models")
    names: list[str] = []
    makers: set[str] = set()
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, Mapping):
            name = next((item[key] for key in ("id", "name", "model") if isinstance(item.get(key), str)), None)
            aliases = item.get("aliases")
            names += [name] if name else []
            names += [alias for alias in aliases if isinstance(alias, str)] if isinstance(aliases, list) else []
            makers.add(str(item.get("owned_by")).casefold())
    return names, makers


def matching(wanted: str, names: Sequence[str]) -> list[str]:
    """Names that mean the model wanted: in other case, with another prefix (``models/``, ``openai/``) or tag (``:latest``).

    A name without a tag means the one model of that name, whatever its tag; where there are several, none.
    """
    base, tag = _base_and_tag(wanted)
    alike = [(name, other) for name in names for start, other in (_base_and_tag(name),) if _is_end(base, start)]
    same = [name for name, other in alike if (other or "latest") == (tag or "latest")]
    if not same and not tag and len(alike) == 1:
        return [alike[0][0]]
    return same


def _is_end(one: str, other: str) -> bool:
    """Whether two names are the same, or one is the other behind a slash."""
    return bool(one and other) and (one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}"))


def _base_and_tag(name: str) -> tuple[str, str]:
    base, _, tag = name.casefold().rpartition(":")
    return (name.casefold(), "") if not base or "/" in tag else (base, tag)
