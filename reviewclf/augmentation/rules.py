"""What gives away that a text was written by a language model to order: named rules over one text. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from reviewclf.labeling.injection import is_order
from reviewclf.text import clean_text, cyrillic_share, normal_form

_NUMBERING = re.compile(r"\s*(?:\(?\d{1,3}\s?[.)](?:\s+(?!\d)|(?=[^\W\d]))|№\s?\d+|#\d+|[-–—*•▪·]\s+)")
_HEADING = re.compile(
    r"\W*(?:отзыв|заметка|пример|вариант|покупатель|комментарий|review|example|comment)\s*(?:[№#]\s*)?\d+\s*[:.)–—-]"
    r"|\W*(?:отзыв|заметка|категория|оценка|настроение|тональность|манера|длина|review|category|rating|mood)\s*:"
    r"|\s*#{1,6}\s|\s*\*\*",
    re.IGNORECASE,
)
_QUOTES = {"«": "»", "“": "”", "„": "“", '"': '"', "'": "'", "`": "`", "‘": "’"}
_ASSISTANT = re.compile(
    r"\W*(?:(?:конечно|разумеется|хорошо|отлично|понял|поняла|ок|окей)\W{1,3}\s*"
    r"(?:вот\b|ниже\b|я (?:напишу|составлю|подготов)|держи)"
    r"|(?:вот|ниже)\s+(?:\w+\s+){0,3}(?:отзыв|пример|вариант|текст|замет)\w*"
    r"|с удовольствием (?:напишу|помогу|составлю)|как (?:языковая модель|ии\b|искусственный интеллект)"
    r"|я (?:языковая модель|не могу (?:писать|написать|создать))"
    r"|(?:ассистент|пользователь|assistant|user|system)\s*:|sure\W|certainly\W|of course\W"
    r"|here (?:are|is)\b|as an ai\b|i (?:cannot|can't)\b"
    r"|надеюсь,? (?:\w+ ){1,2}(?:помо[гж]|подойд)"
    r"|если (?:нужно|хотите|потребуется),? (?:могу|я могу|дайте знать|напишите))",
    re.IGNORECASE,
)
_SERVICE = re.compile(r"<\|[^|<>]{0,40}\|>|</?[a-zа-я_]{1,20}/?>|\[/?INST\]|```|<<SYS>>|�", re.IGNORECASE)
_JSON = re.compile(r'\s*[\[{]\s*["{]|"\s*[,\]}]\s*$|["\']?(?:reviews|text|отзывы|текст)["\']\s*:|\\[nu"]')
_PLACEHOLDER = re.compile(r"\[[^\]\d][^\]]{1,40}\]|\{[^{}]{1,40}\}|<[^<>]{2,40}>|_{3,}|\bX{2,}\b|\bname\b", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")
_ECHO_WORDS = 4
_MIN_CYRILLIC = 0.7

Rule = Callable[[str], str | None]


def text_rules(
    *, told: str, names: Sequence[str], real: Sequence[str], min_characters: int, max_characters: int
) -> dict[str, Rule]:
    """Rules by name, in the order in which they are asked, each a function from a text to what it found, or None.

    Parameters
    ----------
    told : str
        Everything that the writers were told; longer runs of words out of it are echoes.
    names : sequence of str
        The categories' names.
    real : sequence of str
        Real reviews: scripts that occur in them are not foreign, and where they are not Russian nothing has to be.
    min_characters, max_characters : int
        Length of the cleaned text.
    """
    scripts = {_script(letter) for text in real for letter in _LETTER.findall(text)} | {"LATIN", "CYRILLIC"}
    echoes = {run for line in told.splitlines() for run in _runs(normal_form(line), _ECHO_WORDS)}
    is_russian = not real or sum(cyrillic_share(text) for text in real) / len(real) >= 0.5
    phrases = [normal_form(name) for name in names if len(name.split()) > 1]

    def other_script(text: str) -> str | None:
        found = [letter for letter in _LETTER.findall(text) if _script(letter) not in scripts]
        return "".join(found[:10]) or None

    def prompt_echo(text: str) -> str | None:
        form = normal_form(text)
        if (echo := next((run for run in _runs(form, _ECHO_WORDS) if run in echoes), None)) is not None:
            return echo
        named = next((phrase for phrase in phrases if f" {phrase} " in f" {form} "), None)
        return named or ("speaks to the model" if is_order(text, names) else None)

    def length(text: str) -> int:
        return len(clean_text(text))

    rules: dict[str, Rule] = {
        "empty": lambda text: None if normal_form(clean_text(text)) else "no word is left",
        "service_tokens": lambda text: _first(_SERVICE.search(text)),
        "json_remains": lambda text: _first(_JSON.search(text)),
        "numbering": lambda text: _first(_NUMBERING.match(text)),
        "heading": lambda text: _first(_HEADING.match(text)),
        "quotes": _in_quotes,
        "assistant_prefix": lambda text: _first(_ASSISTANT.match(text)),
        "prompt_echo": prompt_echo,
        "placeholder": lambda text: _first(_PLACEHOLDER.search(text)),
        "other_script": other_script,
        "too_short": lambda text: f"{length(text)} characters" if length(text) < min_characters else None,
        "too_long": lambda text: f"{length(text)} characters" if length(text) > max_characters else None,
        "repeated_words": _repeated,
    }
    if is_russian:
        rules["not_russian"] = _not_russian
    return rules


def _script(letter: str) -> str:
    # Names of letters begin with their script: GREEK SMALL LETTER ALPHA, CJK UNIFIED IDEOGRAPH-4E00.
    return "CYRILLIC" if "а" <= letter <= "я" else unicodedata.name(letter, "UNKNOWN").split()[0]


def _first(match: re.Match[str] | None) -> str | None:
    return None if match is None else match[0].strip()[:40] or match[0]


def _in_quotes(text: str) -> str | None:
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    if closing is None:
        return None
    if text.endswith((closing, closing + ".", closing + ",", closing + "!")) and closing not in text[1:-2]:
        return f"{text[0]}…{closing}"
    # «"Начало без конца»: the other half stayed in the list it came from.
    return text[0] if text[0] in "\"'`" and text.count(text[0]) % 2 else None


def _not_russian(text: str) -> str | None:
    share = cyrillic_share(clean_text(text))
    return f"{share:.0%} of the letters are Cyrillic" if share < _MIN_CYRILLIC else None


def _repeated(text: str) -> str | None:
    form = normal_form(text)
    if (same := next((run for run in _runs(form, 4) if len(set(run.split())) == 1), None)) is not None:
        return same
    runs = _runs(form, 3)
    return next((f"{run} ({runs.count(run)} times)" for run in runs if runs.count(run) >= 3), None)


def _runs(form: str, length: int) -> list[str]:
    """All runs of so many words in a text's normal form."""
    words = form.split()
    return [" ".join(words[place : place + length]) for place in range(len(words) - length + 1)]
