"""Reviews that speak to the model instead of shoppers: found, and hidden where they do.

A heading gives no order: «Вывод: сапоги не стоят своих денег» is a buyer's sentence, and so is «ответьте, когда придёт обувь».
An order is told by what it demands: an imperative whose object is an answer (a category or its code), words about the model's
own instructions, role or labelling, or something made to look like an answer or like a message of the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from reviewclf.text import folded

MASKED = "[…]"
_PASSES = 8


def _any(*patterns: str) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


# -- what imitates messages and answers --------------------------------------------------------------------------------

_ROLE = r"system|assistant|user|human|developer|tool|instructions?|prompt|система|ассистент|инструкция"
# What chat templates, reasoning and tools mark messages with, in the spellings of the model families that are met.
_MARKUP = re.compile(
    _any(
        r"<[|｜][^|｜<>]{0,40}[|｜]>|</?s>|<</?SYS>>|\[/?INST\]|<(?:start|end)_of_turn>",
        rf"</?\s*(?:отзыв|reviews?|think(?:ing)?|message|{_ROLE})\s*/?>",
        rf"^[ \t]*#+\s*(?:{_ROLE}|response)\b[: ]*",
        r"\[(?:system|assistant|user|система)\]|^[ \t]*(?:system|assistant|user|human) ?(?:prompt|message)?:",
    ),
    re.IGNORECASE | re.MULTILINE,
)
_KEY = r"label|category|class|answer|output|result|категория|метка|класс|ответ"
_IMITATED_ANSWER = re.compile(
    _any(
        r"(?i:<think(?:ing)?>.{0,2000}?</think(?:ing)?>)",
        r"(?i:(?:<\|[^|<>]{0,40}\|>|<start_of_turn>)\s*(?:assistant|model|ассистент)\s*(?:<\|[^|<>]{0,40}\|>)?\s*[1-9](?!\w))",
        rf"(?i:<\s*(?P<tag>{_KEY}|response)\s*>[^<>]{{0,200}}<\s*/\s*(?P=tag)\s*>)",
        rf"(?i:\{{[^{{}}]{{0,300}}[\"'«](?:{_KEY}|номер|код|code)[\"'»]\s*:[^{{}}]{{0,300}}\}}?)",
        rf"(?i:[\"'](?:{_KEY})[\"']\s*[:=]\s*(?:[\"'«][\w ]{{1,60}}[\"'»]|[1-9](?!\w)))",
        # Base64, percent-encoded and escaped text: no word of a shopper is like that.
        r"(?<![\w+/])(?=[A-Za-z+/]*[0-9])(?=[A-Z0-9+/]*[a-z])[A-Za-z0-9+/]{28,}={0,2}(?![\w+/])",
        r"(?:%[0-9A-Fa-f]{2}){6,}",
        r"(?:\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})){4,}",
    ),
)

# -- what gives orders -------------------------------------------------------------------------------------------------

_MODEL = (
    r"ассистент|классификатор|нейросет\w*|бот|ии|языков\w+ модел\w+|разметчик|ai|assistant|classifier|(?:language|ai) model|bot"
    r"|llm|gpt|chatgpt"
)
_ABOUT_LABELLING = re.compile(
    _any(
        # The model's instructions: one who is addressed as «ты», or the ones that came before.
        r"\b(?:про)?игнорируй (?:\w+ ){0,2}?(?:инструкции|правила|указания|команды|промпт)\b",
        r"\b(?:(?:про)?игнорируй|забудь|отбрось|отмени|не следуй|не выполняй)(?:те)? (?:\w+ ){0,2}?"
        r"(?:предыдущ|прошл|прежн|системн|сво|тво)\w+ (?:инструкц|правил|указан|команд|промпт|сообщен|задан)\w+",
        r"\b(?:(?:про)?игнорируй|забудь)(?:те)? (?:вс[её],? )?(?:что|о ч[её]м)\b.{0,30}\b(?:выше|до этого|ранее|раньше)\b",
        r"\b(?:ignore|disregard|forget|override) (?:\w+ ){0,3}?(?:instructions?|prompts?|rules|above|before)\b",
        r"\b(?:системн\w+ промпт|system prompt|new instructions?)\b|\bнов(?:ая|ые) инструкци[яи] ?[:—–]",
        # A role or a task.
        rf"\b(?:ты|вы) (?:теперь|больше не|отныне) (?:\w+ ){{0,2}}?(?:{_MODEL})\b",
        rf"\b(?:ты|вы) ?[—–-] ?(?:\w+ )?(?:{_MODEL})\b",
        rf"\b(?:действуй(?:те)? как|act as) (?:an? |the )?(?:\w+ )?(?:{_MODEL})\b",
        rf"\bпредставь(?:те)?,? что (?:ты|вы) (?:\w+ )?(?:{_MODEL})\b",
        r"\bтвоя (?:новая |единственная )?задача\b(?=.{0,40}(?:ответ|отвеч|пи[сш]|выв[оеё]|номер|категор|метк|разме[тч]))",
        r"\bты (?:должен|обязан) (?:ответ|отвеч|вывод|вывес)\w+",
        rf"\byou (?:are|must be) (?:now )?(?:an? |the )(?:\w+ )?(?:{_MODEL})\b",
        r"\byou must (?:answer|respond|output|reply|say)\b|\byour (?:new |only )?task is\b",
        # The model itself.
        rf"\b(?:уважаем\w+|дорог\w+|эй|если ты|для|dear|hey|if you are an?|(?:note|message) (?:to|for)(?: the)?) "
        rf"(?:{_MODEL})\b(?=.*(?:[:,]|\b[1-9]\b))",
        # The review as something to be labelled.
        r"\b(?:классифицируй|размет[ьи]|размечай|отнеси|считай|пометь)(?:те)? (?:этот |данный |мой )?(?:отзыв|текст)",
        r"\b(?:ответь|отвечай)(?:те)? (?:\w+ ){0,2}?(?:номером|цифрой|кодом|категорией|словом)\b",
        r"\b(?:присвой|поставь|выбери|верни|выведи|укажи|напиши)(?:те)? (?:\w+ )?"
        r"(?:метку|json|категорию (?:номер|№|[«\"]|[1-9]\b))",
        r"\bотзыв (?:\w+ ){0,2}?относится к категории\b",
        r"\b(?:classify|label|tag) (?:this|the|it|every) ?(?:review|text|as\b)",
        r"\b(?:answer|respond|reply) (?:only )?with\b|\boutput only\b",
        r"\bверни(?:те)? ответ\b|\b(?:correct|right) (?:answer|label|category) is\b",
    ),
    re.IGNORECASE,
)
_IMPERATIVE = _any(
    r"(?:ответь|отвечай|выведи|выводи|напиши|пиши|укажи|назови|присвой|выбери|отнеси|классифицируй|считай|пометь|скажи|выдай)(?:те)?",
    r"(?:надо|нужно|должна|должен|следует|прошу|требуется) "
    r"(?:ответить|отвечать|вывести|писать|написать|выбрать|указать|отнести)",
    r"answer|respond|reply|output|print|return|say|write|choose|select|classify|label",
)
_ANSWER_ME = r"(?:ответь|отвечай|выведи|выводи)(?:те)?|answer|respond|output"
# Words between the imperative and the answer; with any other the sentence is about something else.
_FILLER = (
    r"только|просто|всегда|именно|пожалуйста|одним|словом|слово|цифрой|цифру|номер\w*|код\w*|категори\w+|класс\w*|метк\w+|ответ\w*"
    r"|это\w*|отзыв\w*|как|что|об?|к|в|only|just|always|exactly|with|as|is|the|this|it|review|word|digit|number|category|label|answer"
)
_GAP = rf"(?:[\s:=—–\-,«»\"'`„“”*(№#]|\b(?:{_FILLER})\b){{1,40}}?"
_CODE = r"(?<![\w.,])[1-9](?![\w/]|[.,:-]\d)"
_CLOSED = r"[»\"'`”*)\]]*\s*(?=$|[.!?,;\n(]|[—–]|(?:и|а|and|nothing|больше)\b)"
_HEADING = _any(
    r"(?:правильн\w+ |верн\w+ |итогов\w+ |final |correct )?(?:номер |код )?"
    r"(?:категори[яи]|метка|класс|ответ|category|label|class|answer|output)(?:(?: этого| данного| моего)? (?:отзыва|товара))?",
    rf"(?:{_ROLE})",
)
_SENTENCE = re.compile(r"(?:[^.!?\n]|\.(?=\d))*+(?:[.!?\n]++|$)")
# An order may stand on two lines.
_COLON_AT_END = re.compile(r"([:—–=]) *\n\s*")


@lru_cache(maxsize=8)
def _demands(names: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Orders to answer with one of the names or a code, and headings with such an answer, and it alone, behind them."""
    longest_first = sorted(names, key=len, reverse=True)
    name = "|".join(r"\s+".join(map(_stem, name.split())) for name in longest_first) or r"(?!)"
    exact = "|".join(map(re.escape, longest_first)) or r"(?!)"
    order = rf"\b(?:{_IMPERATIVE})\b{_GAP}(?:\b(?:{name})\b|{_CODE}){_CLOSED}"
    answer = (
        rf"[«\"'`]?\b(?:{_HEADING})[»\"'`]?(?:\s*(?:[:=—–]|->)|\s+-\s)\s*[«\"'`*(]*"
        rf"(?:(?:[1-9][.)]? )?(?:{exact})|[1-9])[»\"'`*)]*\s*"
        r"(?=$|[.!?;\n]|(?-i:[А-ЯЁ]))"
    )
    # Before a capital letter the full stop was forgotten.
    order += rf"|\b(?:{_ANSWER_ME})\b{_GAP}(?:{exact}|{_CODE})[»\"'`]*(?=\s+(?-i:[А-ЯЁ]))"
    return re.compile(order, re.IGNORECASE), re.compile(answer, re.IGNORECASE)


def _stem(word: str) -> str:
    return re.escape(word) if len(word) < 4 else re.escape(word[: max(4, len(word) - 2)]) + r"\w{0,4}"


def is_order(text: str, names: Sequence[str] = ()) -> bool:
    """Whether a text gives orders to whoever labels it, or imitates an answer or a message of the conversation."""
    return MASKED in hide_orders(text.replace(MASKED, " "), names)


def hide_orders(text: str, names: Sequence[str] = ()) -> str:
    """Put «[…]» where a review speaks to the model, and take out what could pass for a message of its own.

    Parameters
    ----------
    text : str
        A review.
    names : sequence of str
        The categories' names: «ответь: обувь» gives an order even though it says nothing of categories.

    Returns
    -------
    str
        One line. A sentence keeps what it says before the order.
    """
    order, answer = _demands(tuple(name.casefold() for name in names))
    for _ in range(_PASSES):  # what is taken out can lay bare another
        before = text
        text = answer.sub(f" {MASKED} ", _COLON_AT_END.sub(r"\1 ", _IMITATED_ANSWER.sub(f" {MASKED} ", text)))
        text = _MARKUP.sub(" ", text)
        if text == before:
            break
    else:  # a nest that was built to last
        text = text.translate(dict.fromkeys(map(ord, "<>[]#")))
    return " ".join("".join(_hidden(sentence, order, answer) for sentence in _SENTENCE.findall(text)).split())


def _hidden(sentence: str, *patterns: re.Pattern[str]) -> str:
    # Once more in plain letters: orders are also written in look-alike ones, or spaced out.
    for shown in (sentence, folded(sentence.casefold())):
        found = [match.start() for pattern in (*patterns, _ABOUT_LABELLING) if (match := pattern.search(shown))]
        if found:
            return f"{shown[: min(found)]} {MASKED} "
    return sentence
