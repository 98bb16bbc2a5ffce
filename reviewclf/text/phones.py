"""Phone numbers in texts: shapes that people write them in, judged by their numbering plans."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

# Something with enough digits in a row to look at; reviews without it never reach the patterns below.
DIGITS = re.compile(r"[0-9][0-9 ()–.-]{8,60}[0-9]")
_SEP = r"[ .–-]{0,2}"
_TAIL_OF_10 = "|".join(
    (
        rf"\(?[0-9]{{3}}\)?{_SEP}[0-9]{{3}}{_SEP}[0-9]{{2}}{_SEP}[0-9]{{2}}",
        rf"\(?[0-9]{{3}}\)?{_SEP}[0-9]{{2}}{_SEP}[0-9]{{2}}{_SEP}[0-9]{{3}}",
        rf"\(?[0-9]{{4}}\)?{_SEP}[0-9]{{2}}{_SEP}[0-9]{{2}}{_SEP}[0-9]{{2}}",
        rf"\(?[0-9]{{4}}\)?{_SEP}[0-9]{{3}}{_SEP}[0-9]{{3}}",
        rf"\(?[0-9]{{5}}\)?{_SEP}[0-9]{{1}}{_SEP}[0-9]{{2}}{_SEP}[0-9]{{2}}",
    )
)
# A candidate is 7 or 8 and ten digits grouped the way people write phones, ten digits beginning with 9 in brackets or
# hyphens, or an international number behind a plus. Body measures («42-44 170 86 68 168») have none of these shapes, though
# the library alone would call some of them valid.
_PHONE = re.compile(
    rf"(?:\+7{_SEP}(?:{_TAIL_OF_10})|\+[0-9](?:[ ().–-]{{0,2}}[0-9]){{9,14}}"
    rf"|(?<![0-9A-Za-z_+])(?<![0-9A-Za-z][–./-])[78]{_SEP}(?:{_TAIL_OF_10})"
    r"|(?<![0-9A-Za-z_+])(?<![0-9A-Za-z][–./-])(?:\(9[0-9]{2}\) ?|9[0-9]{2}-)[0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{2}"
    r")(?![0-9])(?![–./-][0-9])"
)
# A number that these words announce is a parcel's or an order's.
_NO_PHONE_BEFORE = re.compile(
    r"(?:тр[еэ]к|track|заказ|посылк|накладн|артикул|штрих|шпи|код)\w{0,12}[\s:№#-]{0,4}$", re.IGNORECASE
)


def without_phones(text: str, placeholder: str, *, trust_context: bool) -> str:
    """Put a placeholder for phone numbers; with `trust_context`, not for those that a word before announces as a parcel's."""

    def replace(match: re.Match[str]) -> str:
        announced = trust_context and _NO_PHONE_BEFORE.search(text[max(0, match.start() - 30) : match.start()])
        return match[0] if announced else _phone_replaced(match[0], placeholder)

    return _PHONE.sub(replace, text)


def _phone_replaced(candidate: str, placeholder: str) -> str:
    """Replace the longest beginning of `candidate` that is a valid number; an international one may run into a size."""
    is_valid = phone_validator()
    number = candidate
    while True:
        if is_valid(number):
            return placeholder + candidate[len(number) :]
        # Shorten by whole groups only: half of a group is not what the writer meant.
        shorter = re.match(r"(.*[0-9])[^0-9]+[0-9]+$", number)
        if not shorter or sum(map(str.isdigit, shorter[1])) < 10:
            return candidate
        number = shorter[1]


@cache
def phone_validator() -> Callable[[str], bool]:
    """Tell valid numbers, Russian ones without a country code among them."""
    # Imported on the first candidate: most batches have none.
    import phonenumbers

    def is_valid(number: str) -> bool:
        digits = "".join(filter(str.isdigit, number))
        # Without a plus 7 stands for +7; the library would read it as the beginning of a national number.
        plus = number.startswith("+") or (len(digits) == 11 and digits[0] == "7")
        try:
            parsed: Any = phonenumbers.parse(f"+{digits}" if plus else digits, "RU")
        except phonenumbers.NumberParseException:
            return False
        return bool(phonenumbers.is_valid_number(parsed))

    return is_valid
