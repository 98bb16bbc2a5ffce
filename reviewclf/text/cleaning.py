"""Cleaning and comparing the texts of reviews. Pure: no files, no clock, no randomness.

What is taken out is what names a person or a page (links, e-mail addresses, phone numbers) and what is no text (HTML, emoji,
control characters). What tells a product stays: measures, sizes, dates, prices, model numbers. All patterns are bounded or
possessive, so the work grows linearly with the length of the text.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable
from html.entities import html5

from reviewclf.text.lookalikes import folded, with_one_alphabet
from reviewclf.text.misread import PLAIN, repaired
from reviewclf.text.phones import DIGITS, without_phones

# Removing one thing can lay bare another (a tag around a tag, an entity of an entity). Real reviews need two passes; what
# still changes after this many was built to do so.
_PASSES = 8

# Possessive quantifiers stand behind single characters and classes only: behind a group, CPython before 3.11.5 does not go
# back to where a failed repetition began (gh-106052).
# The same without Latin letters: no word of it mixes alphabets, and there is no link in it but one to .рф.
_RUSSIAN = re.compile(r"[\t\n\r !-%'-;=>?\[-`{-~А-яЁё«»—–…“”„’№²³½€₽×]*+")

# --- characters -------------------------------------------------------------------------------------------------------
# Format characters, variation selectors, private use, surrogates, noncharacters: invisible, so they leave no gap.
INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]+"
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffc\ufffd]+")
# Full-width and half-width forms, mathematical letters, Latin ligatures: the same letters in fancy dress. The rest of NFKC
# would turn ½ into 1⁄2, м² into м2, № into No and ° º into letters, and is left alone.
FANCY = re.compile(r"[\ufb00-\ufb06\uff01-\uffef\U0001d400-\U0001d7ff]+")
_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2212", "-"))
SEPARATORS = _HYPHENS | str.maketrans(dict.fromkeys("\t\u00a0\u2002\u2003\u2007\u2008\u2009\u202f\u3000", " "))
# A keycap is a digit in a frame: the frame goes, «4️⃣6️⃣ размер» keeps its 46.
KEYCAP = re.compile(r"([0-9])\ufe0f?\u20e3|[#*]\ufe0f?\u20e3|\u20e3")
# Characters that are emoji only when a variation selector says so: «©», «™», the circled «Ⓜ» of a size alone are text.
_TEXT_EMOJI = re.compile(r"[\u00a9\u00ae\u2122\u2139\u24c2]\ufe0f")
# Emoji, dingbats (without the circled digits) and pictographs. Joiners, skin tones, flags and tags are single characters
# here, each of them removed, so sequences of any length go.
_EMOJI = re.compile(
    r"[\u203c\u2049\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2775"
    r"\u2794-\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f0ff\U0001f10d-\U0001faff]+"
)

# --- HTML -------------------------------------------------------------------------------------------------------------
# With its semicolon any entity, without it only the ones that bad exports leave behind: «H&M» and «R&B» are no entities.
_ENTITY = re.compile(
    r"&(?:#[0-9]{1,7}(?![0-9]);?|#[xX][0-9a-fA-F]{1,6}(?![0-9a-fA-F]);?|[A-Za-z][A-Za-z0-9]{1,31};|(?:nbsp|quot|amp|lt|gt)(?![A-Za-z0-9]))"
)
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,5}38|#[xX]0{0,5}26);)+")
# Only names of real tags: «размер <XL и рост >170» is no HTML. Attributes are ASCII, values hold no «<», so a scan that
# starts at one «<» ends before the next and all scans together read the text once.
_TAG_NAMES = (
    "a|abbr|acronym|address|article|aside|audio|b|base|big|blockquote|body|br|button|canvas|caption|center|cite|code|col|colgroup|"
    "dd|del|details|dfn|dir|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|h[1-6]|head|header|hr|"
    "html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|marquee|meta|nav|nobr|noindex|noscript|object|ol|optgroup|"
    "option|output|p|param|picture|pre|q|s|samp|script|section|select|small|source|span|strike|strong|style|sub|summary|sup|svg|"
    "table|tbody|td|template|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr|[a-z]{1,20}:[a-z]{1,20}"
)
_TAG = re.compile(
    r"<(?:(?P<raw>script|style)\b[^<>]*+>[^<]*+</(?P=raw)\s*+>"
    rf"|/?(?:{_TAG_NAMES})(?:\s*+/?>|\s++(?:(?:[a-z_:@][a-z0-9_:.@-]*+(?:\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s\"'<>=]++))?\s*+)*)/?>)"
    r"|/[a-z][a-z0-9:-]*+\s*+>|!--[^<>]*+>|!doctype[^<>]*+>|!\[cdata\[|\?xml[^<>]*+>)",
    re.IGNORECASE,
)

# --- links and addresses ----------------------------------------------------------------------------------------------
# Punctuation belongs to a link only when the link goes on after it: «(https://ya.ru/a), отлично», «https://ya.ru.Пришло».
_LINK_TAIL = r"(?:[^\s<>\"«»“”,;.!?()\[\]]|[,;!?()\[\]](?=[A-Za-z0-9/_%&=#+~-])|\.(?=[A-Za-zа-яё0-9/_%&=#+~-]))"
_LINK = re.compile(rf"(?:(?i:https?|ftp)://|(?<![A-Za-z0-9])(?i:www)\.){_LINK_TAIL}+")
# A bare host counts when its last label is a top-level domain that no typo ends in; the second list needs a path, because
# «not.me», «good.shop» and the transliterated «podoshel.net» are a full stop without its space. So is «товар.Пришел»: of
# Cyrillic names only those in .рф count.
_HOST = re.compile(
    rf"(?<![A-Za-z0-9@_-])(?<![A-Za-z0-9]\.)(?P<host>[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)+)(?P<path>(?::[0-9]{{2,5}})?/{_LINK_TAIL}+|/)?"
    rf"|(?<![\w.@-])[\w-]++(?:\.[\w-]++)*?\.(?i:рф)\b(?:/{_LINK_TAIL}*)?"
)
_DOMAINS = frozenset(["ru", "com", "org"])
# fmt: off
_DOMAINS_WITH_PATH = _DOMAINS | {
    "net", "su", "by", "kz", "ua", "info", "biz", "shop", "store", "online", "site", "me", "io", "cc", "ly", "link", "app",
    "club", "top", "pro", "tv", "de", "uk", "cn", "be", "gl", "gg",
}
# fmt: on
_HOST_HINT = re.compile(r"\.(?:[A-Za-z]|рф|РФ|(?<=[wW]\.))")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@(?:[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)+|[\w-]++\.рф\b)|(?<![\w.-])[\w.-]++@[\w-]++\.рф\b"
)

_CYRILLIC = re.compile(r"[\u0400-\u0481\u048a-\u052f\u1c80-\u1c8a\ua640-\ua66e\ua680-\ua69d]")
_WORD = re.compile(r"[^\W_]+")
# Letters that no pattern of this package looks at: without those that misread text is made of.
_LETTERS = re.compile(r"(?:[ЁёІіЇїЄєЎўҐґ]|[^\W\d_\u00aa-\u024f\u0400-\u040f\u0450-\u045f])+")
_MARK = re.compile(r"[\u0300-\u036f]+")


def clean_text(text: str) -> str:
    """Take out links, HTML, e-mail addresses, phone numbers, emoji and control characters; normalise the rest.

    Parameters
    ----------
    text : str
        A review as it came. Text that was read in the wrong encoding («Ð´Ð°», «РґР°») is read again
        (:func:`~reviewclf.text.repaired`).

    Returns
    -------
    str
        One line in NFC with single spaces, empty when nothing was worth keeping. ``clean_text(clean_text(x))`` equals
        ``clean_text(x)`` for every `x`. What is removed leaves a space, so nothing grows together.

    Notes
    -----
    Time grows linearly with the length: a pass is linear, and there are at most eight. Text that still changes after them (a
    nest of tags, entities or phone numbers made for the purpose) is reduced to its letters, which no pattern matches.
    """
    for _ in range(_PASSES):
        cleaned = _clean_once(text)
        if cleaned == text:
            return cleaned
        text = cleaned
        if _is_settled(text):
            return text
    return " ".join(_LETTERS.findall(text))


def clean_texts(texts: Iterable[str | None]) -> list[str]:
    """Apply :func:`clean_text` to each text, in order; None and NaN become empty."""
    return [clean_text(text) if isinstance(text, str) else "" for text in texts]


def normal_form(text: str) -> str:
    """Text for comparing: case-folded, ё as е, only words and numbers, one space between them.

    Two reviews that differ in case, punctuation, emoji or white space have the same normal form. It is empty when the text
    holds neither letters nor digits.
    """
    folded = text.casefold()
    if not PLAIN.fullmatch(folded):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", INVISIBLE.sub("", folded)).casefold())
        folded = _MARK.sub("", folded)
    return " ".join(_WORD.findall(folded.replace("ё", "е")))


def comparison_form(text: str) -> str:
    """The :func:`normal_form` with look-alike letters of other alphabets and spaced-out words folded (:mod:`.lookalikes`).

    That of ordinary Russian text is its normal form.
    """
    return folded(normal_form(text))


def text_hash(text: str) -> str:
    """32 hexadecimal characters of BLAKE2b over the :func:`normal_form`; of the stripped text where that is empty."""
    return form_hash(normal_form(text) or text.strip())


def form_hash(form: str) -> str:
    """The :func:`text_hash` of a text whose :func:`normal_form` is known."""
    return hashlib.blake2b(form.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def cyrillic_share(text: str) -> float:
    """Share of the letters that are Cyrillic, in [0, 1]; 0.0 when there are no letters."""
    letters = sum(map(str.isalpha, text))
    return len(_CYRILLIC.findall(text)) / letters if letters else 0.0


def _clean_once(text: str) -> str:
    beginning = _RUSSIAN.match(text)
    end = beginning.end() if beginning else 0
    russian = end == len(text)
    plain = russian or PLAIN.fullmatch(text, end)
    joined = text = " ".join(text.split() if plain else repaired(text).split())
    if not plain:
        if "&" in text:
            text = _ENTITY.sub(_unescaped, _AMPERSANDS.sub("&", text))
        text = _normalise_characters(text)
        if "<" in text:
            text = _TAG.sub(" ", text)
    if not russian:
        text = with_one_alphabet(text)
    if (".рф" in text or ".РФ" in text) if russian else (not plain or "://" in text or _HOST_HINT.search(text)):
        text = without_addresses(text, link=" ", email=" ")
    if DIGITS.search(text):
        text = without_phones(text, " ", trust_context=True)
    return text if text is joined else " ".join(text.split())


def _is_settled(text: str) -> bool:
    """Whether another pass surely changes nothing; a cheap test that holds for nearly all reviews."""
    return PLAIN.fullmatch(text) is not None and "://" not in text and not _HOST_HINT.search(text) and not DIGITS.search(text)


def _unescaped(match: re.Match[str]) -> str:
    name = match[0].strip("&;")
    # The library would read «&copyright;» as © and «right;».
    return html.unescape(match[0]) if name.startswith("#") or f"{name};" in html5 else match[0]


def _normalise_characters(text: str) -> str:
    text = KEYCAP.sub(r"\1", text)
    text = _TEXT_EMOJI.sub(" ", text)
    text = INVISIBLE.sub("", text)
    text = _CONTROL.sub(" ", text)
    text = _EMOJI.sub(" ", text)
    text = FANCY.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return unicodedata.normalize("NFC", text.translate(_HYPHENS))


def without_addresses(text: str, *, link: str, email: str) -> str:
    """Put one string for each link and another for each e-mail address."""
    if "@" in text:
        text = _EMAIL.sub(email, text)
    text = _LINK.sub(link, text)
    return _HOST.sub(lambda match: link if _is_link(match) else match[0], text)


def _is_link(match: re.Match[str]) -> bool:
    host = match["host"]
    if host is None:
        return True
    last = host.rpartition(".")[2].lower()
    return last in (_DOMAINS_WITH_PATH if match["path"] else _DOMAINS)
