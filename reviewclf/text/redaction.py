"""Personal data in texts that leave the machine: placeholders for numbers, addresses and names of accounts.

Stricter than cleaning: people who want to be called spell their number so that no shop's filter finds it.
"""

from __future__ import annotations

import re
import unicodedata

from reviewclf.text.cleaning import FANCY, INVISIBLE, KEYCAP, SEPARATORS, without_addresses
from reviewclf.text.phones import phone_validator, without_phones

_PASSES = 8

_S = r"[ .,;:–—/*_|~·•\\()=\"'-]"
_GROUPS = "|".join(
    rf"{_S}{{0,3}}".join(rf"[0-9]{{{size}}}" for size in sizes)
    for sizes in (
        (3, 3, 2, 2),
        (3, 3, 4),
        (3, 2, 2, 3),
        (3, 2, 3, 2),
        (3, 7),
        (4, 2, 2, 2),
        (4, 3, 3),
        (3, 1, 2, 2, 2),
        (5, 1, 2, 2),
    )
)
# What stands for a number of ten or eleven digits, whatever stands between them: any grouping behind +7, the usual ones
# behind 7 or 8, each digit alone, and ten digits of a mobile number. Sizes and prices have other shapes.
_SPELLED = re.compile(
    rf"(?<![0-9A-Za-z_+])(?<![0-9A-Za-z][–./-])(?:"
    rf"\+ ?7(?:{_S}{{0,3}}[0-9]){{10}}"
    rf"|[78]{_S}{{0,3}}(?:{_GROUPS})"
    rf"|[78](?:{_S}{{1,3}}[0-9]){{10}}|9(?:{_S}{{1,3}}[0-9]){{9}}"
    rf"|9[0-9]{{2}}(?:[0-9]{{7}}|{_S}{{1,3}}[0-9]{{3}}{_S}{{0,3}}[0-9]{{2}}{_S}{{0,3}}[0-9]{{2}})"
    r")(?![0-9A-Za-z])(?![–./-][0-9])"
)
_NUMERAL = (
    r"(?:н[оу]ль|один|одна|дв[ае]|три|четыре|пять|шесть|семь|восемь|девять|десять|\w{2,6}надцать|двадцать|тридцать|сорок"
    r"|пятьдесят|шестьдесят|семьдесят|восемьдесят|девяносто|сто|двести|триста|четыреста|пятьсот|шестьсот|семьсот|восемьсот|девятьсот)"
)
# Eleven digits said in words take seven of them at least.
_IN_WORDS = re.compile(rf"(?i:\b(?:плюс )?(?:семь|восемь|девять|девятьсот)(?:[\s,.-]{{1,3}}{_NUMERAL}){{5,}}\b)")
_ARTICLE_BEFORE = re.compile(
    r"(?:\bарт(?:икул\w*)?\b|код товара|модел[ьи]|штрих-?код\w*|серийн\w+ номер|\b(?:sku|ean|isbn|id|s/n)\b)[\s:№#.-]{0,4}$",
    re.IGNORECASE,
)
_CARD = re.compile(r"(?<![0-9A-Za-z_])(?<![0-9][ –.-])[0-9](?:[ –-]?[0-9]){14,18}(?![0-9])")

# «vasya (собака) mail точка ru»: the signs of an address in words or apart.
_SPELLED_EMAIL = re.compile(
    r"(?i:\b[a-z0-9][a-z0-9._+-]{1,40} ?(?:@|[(\[{ ](?:собака|собачка|at|dog)[)\]} ]) ?[a-z0-9-]{2,30} ?"
    r"(?:\.|[(\[ ](?:точка|dot)[)\] ]) ?(?:ru|ру|com|ком|net|org|by|kz|ua|su)\b)"
)
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_NAME = re.compile(r"(?<![\w.@])@[^\W\d_]\w+(?:\.\w+)*")
_MESSENGER = (
    r"(?i:телеграмм?\w{0,2}|телег[аеу]|тг|tg|telegram|инстаграмм?\w{0,2}|инст[аеу]|inst(?:agram)?|вк|vk|whats?app|в[ао]ц?т?с?ап\w{0,2}"
    r"|вайбер\w{0,2}|viber|скайп\w{0,2}|skype|discord|дискорд\w{0,2}|ник)"
)
_NAMED = re.compile(
    rf"(?<!\w)({_MESSENGER}(?: ?[:—–=-] ?| ))((?<=[:—–=-])[a-z][A-Za-z0-9_.]{{2,30}}[A-Za-z0-9_]"
    rf"|(?<=[:—–=-] )[a-z][A-Za-z0-9_.]{{2,30}}[A-Za-z0-9_]"
    rf"|(?=[A-Za-z0-9.]{{0,30}}_)[A-Za-z][A-Za-z0-9_.]{{2,30}}[A-Za-z0-9_])"
)


def redact(text: str) -> str:
    """Put placeholders for what must not leave the machine.

    Links become «[ссылка]», e-mail addresses «[почта]», card numbers (15 to 19 digits that pass the Luhn check) «[карта]»,
    phone numbers in any spelling «[телефон]», names of accounts («@vasya», «телеграм: vasya») «[имя]». All else stays as it is,
    except what could hide a number: invisible characters go, full-width forms, digits in frames or of other scripts, special
    hyphens and spaces become plain. Stricter than :func:`~reviewclf.text.clean_text`: a number that could be a parcel's is
    taken for a phone; one that is announced as an article's stays.

    ``redact(redact(x))`` equals ``redact(x)``.
    """
    text = INVISIBLE.sub("", KEYCAP.sub(r"\1", text))
    text = FANCY.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text).translate(SEPARATORS)
    text = _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    for _ in range(_PASSES):
        before = text
        text = without_addresses(_SPELLED_EMAIL.sub("[почта]", text), link="[ссылка]", email="[почта]")
        text = _NAMED.sub(r"\1[имя]", _NAME.sub("[имя]", text))
        text = _CARD.sub(lambda match: "[карта]" if _passes_luhn(match[0]) else match[0], text)
        text = without_phones(text, "[телефон]", trust_context=False)
        text = _IN_WORDS.sub("[телефон]", _SPELLED.sub(_phone_replaced, text))
        if text == before:
            break
    return text


def _phone_replaced(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 30) : match.start()]
    if _ARTICLE_BEFORE.search(before) or not phone_validator()(match[0]):
        return match[0]
    return "[телефон]"


def _passes_luhn(number: str) -> bool:
    digits = [int(char) for char in number if char.isdigit()]
    doubled = (2 * digit - 9 * (digit > 4) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
