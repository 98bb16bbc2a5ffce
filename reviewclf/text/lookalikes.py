"""Letters of other alphabets that look like Cyrillic ones: put right in words that mix alphabets, and folded for comparing."""

from __future__ import annotations

import re
import unicodedata

# Latin and Cyrillic letters that no reader can tell apart.
_LATIN, _CYRILLIC = "ABCEHKMOPTXYaceopxyi", "АВСЕНКМОРТХУасеорхуі"
_TO_CYRILLIC, _TO_LATIN = str.maketrans(_LATIN, _CYRILLIC), str.maketrans(_CYRILLIC, _LATIN)
_MIXED = re.compile(r"[A-Za-z][А-яЁёіІ]|[А-яЁёіІ][A-Za-z]")
# Where a Latin part joins another by a hyphen, both are what they are («XL-ка»).
_PART = re.compile(r"[A-Za-zА-яЁёіІ]++")
_ONLY_CYRILLIC = re.compile(r"[А-яЁёіІ]+")
_ONLY_LATIN = re.compile(r"[A-Za-z]+")

# For comparing also what only resembles a letter, in lower case: Latin, Greek, small capitals, Armenian.
_RESEMBLING = {
    **{"а": "aαᴀɑ", "в": "bβʙ", "г": "rγᴦ", "е": "eεᴇ", "и": "uᴎ", "і": "iιı", "к": "kκᴋ", "л": "λᴧ", "м": "mμᴍ", "н": "hηʜ"},
    **{"о": "oοᴏօσ", "п": "nπᴨո", "р": "pρᴘ", "с": "cϲςᴄ", "т": "tτᴛ", "у": "yυ", "ф": "φ", "х": "xχ", "я": "ᴙ"},
}
_FOLDED = str.maketrans({alike: letter for letter, others in _RESEMBLING.items() for alike in others})
_RUSSIAN_FORM = re.compile(r"[а-я0-9 ]*+")
_FOREIGN_WORD = re.compile(r"[^\W_]*[^\Wа-я0-9_][^\W_]*")
_ACCENTED = re.compile(r"[\u00c0-\u024f\u0370-\u03ff\u1e00-\u1fff]")
_CYRILLIC_LETTER = re.compile(r"[\u0400-\u052f]")
# A zero or a three within a word stands for a letter; a number before a word («3раза») stays one.
_DIGIT = re.compile(r"(?<=[а-я])[03](?=[а-я])|\b0(?=[а-я])|(?<=[а-я])0\b")
_DIGITS = {"0": "о", "3": "з"}
# «п л а т ь е»: at least three letters, each alone.
_SPACED = re.compile(r"(?<![^ ])[^\W\d_](?: [^\W\d_]){2,}(?![^ ])")


def with_one_alphabet(text: str) -> str:
    """Put right words in which letters of the other alphabet stand for Cyrillic or for Latin ones.

    A word becomes Cyrillic where all of its Latin letters have a double («плaтье»), Latin where all of its Cyrillic letters
    have one («Аdidas»), and stays as it is where neither is so («SMSка»).
    """
    return _PART.sub(_in_one_alphabet, text) if _MIXED.search(text) else text


def _in_one_alphabet(match: re.Match[str]) -> str:
    if not _MIXED.search(match[0]):
        return match[0]
    cyrillic = match[0].translate(_TO_CYRILLIC)
    if _ONLY_CYRILLIC.fullmatch(cyrillic):
        return cyrillic
    latin = match[0].translate(_TO_LATIN)
    is_glued = match[0][0] in "су" and _ONLY_LATIN.fullmatch(match[0][1:])  # a preposition without its space: «сSamsung»
    return latin if _ONLY_LATIN.fullmatch(latin) and not is_glued else match[0]


def folded(form: str) -> str:
    """Fold a :func:`~reviewclf.text.normal_form`: texts that look alike become equal, ordinary Russian stays as it is.

    Look-alikes of any alphabet become Cyrillic in words that hold Cyrillic letters or look-alikes alone, a zero or a three
    within a word becomes its letter, and letters that stand alone in a row are joined.
    """
    if not _RUSSIAN_FORM.fullmatch(form):
        form = _FOREIGN_WORD.sub(_folded_word, form)
    if "0" in form or "3" in form:
        form = _DIGIT.sub(lambda match: _DIGITS[match[0]], form)
    return _SPACED.sub(lambda match: match[0].replace(" ", ""), form)


def _folded_word(match: re.Match[str]) -> str:
    bare = _ACCENTED.sub(lambda letter: unicodedata.normalize("NFD", letter[0])[0], match[0])
    word = bare.translate(_FOLDED)
    is_cyrillic = _CYRILLIC_LETTER.search(match[0]) or (word.isalpha() and len(_CYRILLIC_LETTER.findall(word)) == len(word))
    return word if is_cyrillic else match[0]
