"""Text whose bytes were read in the wrong encoding («РџР»Р°С‚СЊРµ» for «Платье»): told from healthy text, and read again.

UTF-8 that was read in a one-byte encoding leaves a pattern that no language writes: each letter becomes a pair, a lead
character (Р or С in Windows-1251, Ð or Ñ in Windows-1252) and a continuation that is mostly no letter. Two such pairs side
by side are the evidence; a text without it is not touched. What was lost on the way is tolerated while it is little.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Printable ASCII without < & @, Russian letters, and the punctuation of Russian keyboards: text made of these alone holds no
# HTML, no e-mail address, no emoji and nothing to normalise, and was read in the right encoding (an а misread is «Р°»).
PLAIN = re.compile(r"[\t\n\r !-%'-;=>?A-~А-яЁё«»—–…“”„’№²³½€₽×]*+")

# Text that was misread twice, and once more for good measure.
_PASSES = 3
# A text of which more is lost than this share of its characters is not repaired: its words cannot be read.
_MAX_LOST = 0.1
_LOST = "\ufffd"

# Letters that stand between the signs of the encodings and that living alphabets use: a healthy Ukrainian word may hold
# one of them behind Р or С.
_MODERN = "А-Яа-яЁёЄєІіЇїЎўҐґ"
# What comes out where healthy text is taken for misread text: no review of the languages met here is written with these.
_ARCHAIC = re.compile(
    r"[\x80-\x9f\u0400\u0402\u0403\u0405\u0408-\u040d\u040f\u0450\u0452\u0453\u0455\u0458-\u045d\u045f-\u0489\u0500-\u0600]"
)


class _Misreading(NamedTuple):
    """UTF-8 that was read in one encoding."""

    hint: re.Pattern[str]
    bytes_of: dict[str, int]
    evidence: re.Pattern[str]
    sequences: re.Pattern[str]

    def is_in(self, text: str) -> bool:
        return self.hint.search(text) is not None and self.evidence.search(text) is not None

    def reread(self, text: str) -> str:
        return self.sequences.sub(self._decoded, text)

    def _decoded(self, match: re.Match[str]) -> str:
        # No byte of UTF-8 is 0xFF: what stands for it comes out as lost.
        content = bytes(self.bytes_of.get(char, 0xFF) for char in match[0])
        return re.sub(f"{_LOST}+", _LOST, content.decode("utf-8", errors="replace"))


def _decoded_byte(byte: int, encoding: str) -> str:
    return bytes([byte]).decode(encoding, errors="ignore") or chr(byte)


def _misreading(
    encoding: str,
    hint: str,
    *,
    leads: tuple[int, int] = (0xD0, 0xD3),
    odd: str = rf"(?![{_MODERN}])",
    has_signs: bool = True,
    beside: str = "",
) -> _Misreading:
    """What UTF-8 looks like in an encoding.

    Parameters
    ----------
    encoding : str
        The one-byte encoding that the bytes were read in.
    hint : str
        A pattern that is fast to search for and that all such text holds.
    leads : tuple of int
        First and last byte of those that begin the pairs that are the evidence.
    odd : str
        Pattern before the continuation of one of the two pairs that are the evidence: what a healthy text could not hold.
    has_signs : bool
        Whether the remains of one emoji or one dash or quotation mark are evidence too.
    beside : str
        Characters that only healthy text holds: what touches them is not read again.
    """
    chars = {byte: _decoded_byte(byte, encoding) for byte in range(0x80, 0x100)}
    bytes_of = {char: byte for byte, char in chars.items()}
    if encoding == "cp1252":  # one name for two encodings: what browsers call Latin-1 is Windows-1252
        bytes_of |= {chr(byte): byte for byte in range(0x80, 0xA0)}

    def some(first: int, last: int) -> str:
        return "[" + "".join(re.escape(char) for char, byte in bytes_of.items() if first <= byte <= last) + "]"

    lead, tail, e2, f0 = some(*leads), some(0x80, 0xBF), re.escape(chars[0xE2]), re.escape(chars[0xF0])
    evidence = [rf"{lead}{odd}{tail}{lead}{tail}", rf"{lead}{tail}{lead}{odd}{tail}"]
    if has_signs:
        evidence += [rf"{f0}{re.escape(chars[0x9F])}{tail}{{2}}", rf"{e2}{re.escape(chars[0x80])}{tail}"]
    # A byte without a character becomes a replacement character or a question mark.
    loose = rf"(?:{tail}|[{_LOST}?])"
    sequences = [rf"{some(0xC2, 0xDF)}{loose}", rf"{some(0xE0, 0xEF)}{loose}{{2}}", rf"{some(0xF0, 0xF4)}{loose}{{3}}"]
    if chars[0xA0] == "\xa0":
        # A no-break space often became a plain one.
        r, nbsp = re.escape(chars[0xD0]), re.escape(chars[0xC2])
        sequences += [rf"{r}[ ]", rf"(?:(?<={tail})|(?<={r}[ ])){nbsp}[ ]"]
        bytes_of[" "] = 0xA0
    # A lead that lost its continuation, or whose continuation was cut off.
    sequences.append(rf"{lead}(?={some(0xC2, 0xDF)}{tail})|(?<={tail}){lead}")
    if encoding == "cp1251":
        bytes_of |= dict.fromkeys(f"{_LOST}?", 0x98)  # the only one that it has no character for
    sequence = rf"(?:{'|'.join(sequences)})+"
    around = (rf"(?<![{beside}])", rf"(?![{beside}])") if beside else ("", "")
    return _Misreading(re.compile(hint), bytes_of, re.compile("|".join(evidence)), re.compile(sequence.join(around)))


_MISREADINGS = (
    _misreading("cp1251", "[РСТУ]|рџ|вЂ", beside="АБабг-пс-я"),
    _misreading("cp1252", "[Â-Ó]|â€|ðŸ", leads=(0xC2, 0xD3), odd=""),
    _misreading("koi8-r", "[─-▟]", odd="(?![ёЁ])"),
    _misreading("cp866", "[─-▟]", leads=(0xC2, 0xD3), odd="", has_signs=False),
    # Dashes are leads here: «–К–Р–А–С–» is a healthy word.
    _misreading("mac-cyrillic", "[–—]", has_signs=False),
    _misreading("mac-roman", "[–—]|‚Ä|ü", odd="(?![A-Za-z])"),
)

# Windows-1251 that was read as Windows-1252 («Ïëàòüå»): words of accented letters alone.
_WESTERN_WORD = re.compile(r"[À-ÖØ-öø-ÿ¨¸]{3,}")
_WESTERN = {ord(_decoded_byte(byte, "cp1252")): bytes([byte]).decode("cp1251", errors="replace") for byte in range(0x80, 0x100)}
# What is left where a program had no letters for the text: «?????? ????».
_QUESTION_MARKS = re.compile(r"\W*\?{2,}[\s,.!()-]+(?:\?+[\s,.!()-]*){2,}\W*")


def repaired(text: str) -> str:
    """Read text again that was misread, once or twice; healthy text comes back as it is.

    UTF-8 read as Windows-1251, Windows-1252, Latin-1, KOI8-R, CP866 or one of the Mac's encodings, and Windows-1251 read as
    Windows-1252 are told by what they leave behind. Letters that were lost on the way become U+FFFD. A text that cannot be
    made sense of comes back as it is; :func:`is_misread` tells it.

    ``repaired(repaired(x))`` equals ``repaired(x)``.
    """
    if PLAIN.fullmatch(text):
        return text
    result = text
    for _ in range(_PASSES):
        before, result = result, _reread(result)
        if result == before:
            break
    if result == text:
        return text
    strange = len(_ARCHAIC.findall(result)) + result.count(_LOST)
    return result if _makes_sense(result) and strange <= _MAX_LOST * sum(map(str.isalpha, result)) else text


def is_misread(text: str) -> bool:
    """Whether text was read in the wrong encoding and :func:`repaired` could not mend it, or its letters are lost."""
    if PLAIN.fullmatch(text):
        return "??" in text and _QUESTION_MARKS.fullmatch(text) is not None
    result = repaired(text)
    return not _makes_sense(result) or _QUESTION_MARKS.fullmatch(result) is not None


def _reread(text: str) -> str:
    found = [misreading for misreading in _MISREADINGS if misreading.is_in(text)]
    if found:
        return max(found, key=lambda misreading: len(misreading.evidence.findall(text))).reread(text)
    western = "".join(_WESTERN_WORD.findall(text))
    if western and 2 * len(western) > sum(map(str.isalpha, text)):
        return text.translate(_WESTERN)
    return text


def _makes_sense(text: str) -> bool:
    lost = text.count(_LOST)
    return lost <= _MAX_LOST * (lost + sum(map(str.isalpha, text))) and _reread(text) == text
