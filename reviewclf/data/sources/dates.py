"""Times as people and programs write them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

# Sources in Russia write local time when they write none.
_LOCAL = ZoneInfo("Europe/Moscow")
# No marketplace has older reviews: an earlier year is a default or a misread number.
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
_NOTHING = frozenset({"", "-", "nan", "nat", "none", "null", "<na>", "n/a", "#n/a", r"\n"})
_ZERO_DATE = re.compile(r"0000-00-00")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
# Excel counts days from here, and says that 1900 was a leap year.
_EXCEL_EPOCH = datetime(1899, 12, 30)
_EXCEL_DAYS = (20_000, 80_000)
# Unix time by its unit: below 10^11 seconds (the year 5138), then milliseconds, microseconds, nanoseconds.
_UNIX_UNITS = ((1e8, 1e11, 1.0), (1e11, 1e14, 1e3), (1e14, 1e17, 1e6), (1e17, 1e20, 1e9))

_MONTHS = {
    stem: number
    for number, stems in enumerate(
        ("янв jan", "фев feb", "мар mar", "апр apr", "мая май may", "июн jun", "июл jul", "авг aug", "сен sep", "окт oct",
         "ноя nov", "дек dec"),
        start=1,
    )
    for stem in stems.split()
}  # fmt: skip
_WORD = r"[a-zа-яё]{3,}"
_WEEKDAY = r"(?:[a-zа-яё]{2,}\.?,? )?"
_DATES = (
    r"(?P<y>\d{4})(?P<sep>[-./])(?P<m>\d{1,2})(?P=sep)(?P<d>\d{1,2})",
    r"(?P<one>\d{1,2})(?P<sep>[-./])(?P<two>\d{1,2})(?P=sep)(?P<y>\d{4}|\d{2})(?: ?г\.?)?",
    rf"{_WEEKDAY}(?P<d>\d{{1,2}})[ .-]+(?P<month>{_WORD})\.?,?[ .-]*(?P<y>\d{{4}}|\d{{2}})(?: ?г(?:ода|\.)?)?",
    rf"{_WEEKDAY}(?P<month>{_WORD})\.? (?P<d>\d{{1,2}}),? (?P<y>\d{{4}})",
    r"(?P<y>(?:19|20)\d{2})(?P<m>[01]\d)(?P<d>[0-3]\d)",
)
_TIME = (
    r"(?:,? ?(?:t|в )?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?: ?(?P<half>[ap])\.?m\.?)?"
    r"(?: ?\(?(?P<zone>z|msk|мск|(?:utc|gmt)?(?P<offset>[+-]\d{1,2}(?::?\d{2})?)|utc|gmt)\)?)?)?"
)
_WRITTEN = tuple(re.compile(when + _TIME, re.IGNORECASE) for when in _DATES)
# The time before the date, as chats show it; the year behind the time, as C and Java do; Java's name behind the offset.
_REORDERED = (
    (re.compile(r"^(\d{1,2}:\d{2}(?::\d{2})?),? (?=\d)(.+)$"), r"\2 \1"),
    (re.compile(r"^([a-z]{3} [a-z]{3} \d{1,2}) (\d{2}:\d{2}:\d{2})((?: [a-z]+)?) (\d{4})$", re.IGNORECASE), r"\1 \4 \2\3"),
    (re.compile(r"(?<=[\dz])\[\w+(?:/\w+)*\]$", re.IGNORECASE), ""),
)
_COMPACT = re.compile(r"((?:19|20)\d{6})(\d{2})(\d{2})(\d{2})")


def parse_when(value: Any, *, latest: datetime | None = None) -> datetime | None:
    """Read a time; where it names no zone, it is Moscow's.

    Understood are ISO 8601, ``dd.mm.yy[yy]``, ``yyyy/mm/dd``, the month as a Russian or English word, fractions of a second
    and zones behind the time, Unix time in seconds down to nanoseconds, Excel's count of days, and the types of pandas and
    NumPy. Of ``03/04/2026`` nobody knows which is the month: only where one of the two is above 12 it is read.

    Parameters
    ----------
    value : object
        As the source holds it.
    latest : datetime, optional
        Times after it are none.

    Returns
    -------
    datetime or None
        In UTC. None where nothing is written, such as an empty field, ``NULL`` or MySQL's ``0000-00-00``.

    Raises
    ------
    ValueError
        It is none of these, or a year in which no review was written.
    """
    value = value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value
    if value is None or value != value:
        return None
    if isinstance(value, str):
        value = " ".join(value.split())
        if value.casefold() in _NOTHING or _ZERO_DATE.match(value):
            return None
    try:
        when = _read(value)
        when = (when if when.tzinfo else when.replace(tzinfo=_LOCAL)).astimezone(UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(f"{value!r:.60} is no time") from error
    if when < _EARLIEST or (latest is not None and when > latest):
        raise ValueError(f"{value!r:.60} is no time in which a review was written")
    return when


def _read(value: Any) -> datetime:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no time")  # noqa: TRY004 - one kind of error for all that is no time
    if isinstance(value, datetime):
        # pandas' own type counts nanoseconds, which the tables do not hold.
        return value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if not isinstance(value, str):
        return _from_number(float(value)) if hasattr(value, "__float__") else _from_text(str(value))
    return _from_text(value)


def _from_number(number: float) -> datetime:
    if _EXCEL_DAYS[0] <= number < _EXCEL_DAYS[1]:
        # To the second: a day's fraction is no exact number.
        return _EXCEL_EPOCH + timedelta(seconds=round(number * 86_400))
    if number.is_integer() and (written := _from_digits(str(int(number)))) is not None:
        return written
    for least, most, units in _UNIX_UNITS:
        if least <= number < most:
            return datetime.fromtimestamp(number / units, UTC)
    raise ValueError(f"{number:g} is no time")


def _from_digits(digits: str) -> datetime | None:
    """``yyyymmdd`` and ``yyyymmddhhmmss``; None for other numbers."""
    compact = _COMPACT.fullmatch(digits)
    if compact:
        digits = "{} {}:{}:{}".format(*compact.groups())
    try:
        return _from_match(match) if (match := _WRITTEN[-1].fullmatch(digits)) else None
    except ValueError:
        return None


def _from_text(text: str) -> datetime:
    if _NUMBER.fullmatch(text):
        return _from_number(float(text.replace(",", ".")))
    for unusual, usual in _REORDERED:
        text = unusual.sub(usual, text)
    for pattern in _WRITTEN:
        match = pattern.fullmatch(text)
        if match:
            return _from_match(match)
    return datetime.fromisoformat(text)


def _from_match(match: re.Match[str]) -> datetime:
    found = match.groupdict()
    year, month, day = _calendar(found)
    hour = int(found["hour"] or 0)
    if found["half"]:
        hour = hour % 12 + (12 if found["half"].lower() == "p" else 0)
    fraction = (found["fraction"] or "").ljust(6, "0")[:6]
    when = datetime(year, month, day, hour, int(found["minute"] or 0), int(found["second"] or 0), int(fraction))
    return when.replace(tzinfo=_zone(found))


def _calendar(found: dict[str, str | None]) -> tuple[int, int, int]:
    year = str(found["y"])
    is_short = len(year) == 2
    if is_short:
        year = f"20{year}" if year < "70" else f"19{year}"
    if found.get("one"):
        one, two, dotted = int(found["one"] or 0), int(found["two"] or 0), found["sep"] == "."
        if is_short and not dotted:
            raise ValueError("which of the three is the year is not clear")
        if dotted or one > 12 or one == two:
            return int(year), two, one
        if two > 12:
            return int(year), one, two
        raise ValueError("which of the two is the month is not clear")
    if found.get("month"):
        month = _MONTHS.get(str(found["month"]).casefold()[:3])
        if month is None:
            raise ValueError(f"{found['month']} is no month")
        return int(year), month, int(found["d"] or 0)
    return int(year), int(found["m"] or 0), int(found["d"] or 0)


def _zone(found: dict[str, str | None]) -> timezone | ZoneInfo | None:
    zone, offset = (found["zone"] or "").casefold(), found["offset"]
    if offset:
        digits = offset[1:].replace(":", "")
        hours, minutes = (digits[:-2], digits[-2:]) if len(digits) > 2 else (digits, "0")
        shift = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(-shift if offset[0] == "-" else shift)
    if zone in ("msk", "мск"):
        return _LOCAL
    return UTC if zone else None
