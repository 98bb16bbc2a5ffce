"""Delimited text as rows, in one pass and bounded memory; how it is laid out is recognised by `layout`."""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from reviewclf.data.sources.options import Quoting

# A quoted field may hold line breaks, but one that never ends must not swallow the file: beyond this a record counts as
# broken at its first line, and reading goes on at the next.
_MAX_RECORD_LINES = 5_000
_MAX_RECORD_CHARACTERS = 4_000_000
_LONE_RETURN = re.compile(r"\r(?!\n?\Z)")
_LONE_BACKSLASH = re.compile(r'\\(["\\\r\n\x00]?)')

# Python's csv refuses fields of more than 131,072 characters by default; a line of a file is held as a whole anyway.
csv.field_size_limit(2**31 - 1)


class Record(NamedTuple):
    """One record: its fields (None where it is none, then `flaw` says why), and the lines that it came from."""

    fields: list[str] | None
    lines: list[str]
    flaw: str = ""

    @property
    def text(self) -> str:
        """What came in, without the last line end."""
        return "".join(self.lines).rstrip("\r\n")


MALFORMED = "a quoted field does not end where it should"
UNCLOSED = "a quoted field does not end"


class _Lines:
    """Lines one after another, of which those of a broken record can be given back."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._waiting: deque[str] = deque()
        self._characters = 0
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= _MAX_RECORD_LINES or self._characters > _MAX_RECORD_CHARACTERS:
            raise StopIteration
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self.taken.append(line)
        self._characters += len(line)
        return line

    def begin_record(self) -> None:
        self.taken = []
        self._characters = 0

    def give_back(self) -> None:
        """Let all lines of the record but the first be read again."""
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def records(lines: Iterator[str], separator: str, quoting: Quoting) -> Iterator[Record]:
    """Records of delimited text; empty lines are left out."""
    source = _Lines(lines)
    special = '"\\' if quoting == "backslash" else '"'
    while True:
        source.begin_record()
        line = next(source, None)
        if line is None:
            return
        plain = line.rstrip("\r\n")
        if not plain:
            continue
        if quoting == "none" or not any(sign in plain for sign in special):
            yield Record(plain.replace("\x00", "").split(separator), source.taken)
            continue
        try:
            fields = _parse(line, source, separator, quoting)
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error)
            source.give_back()
            yield Record(None, source.taken, UNCLOSED if unclosed else MALFORMED)
        else:
            yield Record(fields, source.taken)


def _parse(first: str, rest: Iterator[str], separator: str, quoting: Quoting) -> list[str]:
    escape = "\\" if quoting == "backslash" else None

    def prepared() -> Iterator[str]:
        for line in itertools.chain([first], rest):
            # NUL, which means nothing in text, stands for a carriage return that ends no line: csv would end the row there.
            text = _LONE_RETURN.sub("\x00", line.replace("\x00", ""))
            # csv drops every backslash; in such files one that stands before no quote and no backslash is a character.
            yield _LONE_BACKSLASH.sub(lambda found: found[0] if found[1] else r"\\", text) if escape else text

    fields = next(csv.reader(prepared(), delimiter=separator, escapechar=escape, strict=True))
    return [field.replace("\x00", "\r") for field in fields]


def fields_as_they_stand(record: Record, separator: str, n_fields: int) -> list[str] | None:
    """Fields of a record whose quotes are characters (``"Мечта" отличное платье``); None where that is not beyond doubt.

    It is where a reader that honours quotes and one that does not find the same number of fields, which is the header's.
    """
    text = record.text.replace("\x00", "")
    fields = text.split(separator)
    try:
        lenient = next(csv.reader([text], delimiter=separator))
    except csv.Error:
        return None
    return fields if len(fields) == len(lenient) == n_fields else None
