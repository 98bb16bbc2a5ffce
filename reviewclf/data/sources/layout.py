"""How delimited text is laid out: its separator, what its quotes mean, its columns. Recognised from the whole file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from reviewclf.data.sources.decoding import text_lines
from reviewclf.data.sources.delimited import MALFORMED, Record, fields_as_they_stand, records
from reviewclf.data.sources.options import Quoting, ReadOptions
from reviewclf.errors import DataContractError

_SEPARATORS = ",;\t|"
# Separates nothing, for no encoding yields half of a surrogate pair: a file of one column.
_NO_SEPARATOR = "\udfff"
_HEADER_LINES = 20
_EXCEL_HINT = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*+"')
_QUOTED_BY_BACKSLASH = re.compile(r'"(?:[^"\\]|\\.|"")*+"')


class Layout(NamedTuple):
    """How a file is laid out.

    Attributes
    ----------
    columns : list of str
        Their names, all different.
    spare : bool
        Rows may have empty fields beyond the columns: those of a separator at the end of the line.
    """

    separator: str
    quoting: Quoting
    columns: list[str]
    spare: bool


@dataclass
class _Tally:
    """What a reader of one separator and quoting finds in a file."""

    header: list[str]
    text_column: str | None
    # Pattern of a quoted field.
    quoted_field: str = _QUOTED.pattern
    width: int = 0
    widths: dict[int, int] = field(default_factory=dict)
    overfull: int = 0
    filled_without_name: int = 0
    malformed: int = 0
    unclosed: int = 0
    glued: int = 0
    perhaps_glued: int = 0
    bare: int = 0
    proofs: int = 0
    is_header_quoted: bool = False
    is_spaced: bool = False
    has_escapes: bool = False

    def __post_init__(self) -> None:
        self.width = len(_without_trailing(self.header))

    @property
    def spare(self) -> bool:
        """Whether empty fields beyond the columns belong to the layout: the header has them as well, or all rows have them.

        Where a comma with a space behind it stands in unquoted text, an empty last field is no spare one: the text was split.
        """
        if self.width < len(self.header):
            return True
        return not self.widths.get(self.width) and any(n > self.width for n in self.widths) and not self.is_spaced

    @property
    def flaws(self) -> int:
        """Records that do not fit."""
        ragged = sum(count for n, count in self.widths.items() if n < self.width or (n > self.width and not self.spare))
        return ragged + self.overfull + self.malformed + self.unclosed

    def add(self, record: Record, separator: str) -> None:
        text = record.text
        if "\\" in text:
            self.has_escapes = self.has_escapes or '\\"' in text or "\\" + separator in text or text.endswith("\\")
        fields = record.fields
        if fields is None:
            self.malformed += record.flaw == MALFORMED
            self.unclosed += record.flaw != MALFORMED
            return
        if _is_blank(record, self.width):
            return
        if len(fields) > self.width and any(fields[self.width :]):
            self.overfull += 1
            self.filled_without_name += len(fields) == len(self.header)
            return
        self.widths[len(fields)] = self.widths.get(len(fields), 0) + 1
        if '"' not in text:
            self.is_spaced = self.is_spaced or (separator == "," and ", " in text)
            return
        if "\\" in text or text.count('"') % 2:
            self.bare += '"' in _without_quoted_fields(text, separator, self.quoted_field)
        if fields == text.split(separator):
            return
        rows = [line.rstrip("\r\n").split(separator) for line in record.lines]
        if len(rows) > 1 and self.width > 1 and {len(row) for row in rows} == {self.width}:
            self._add_rows_alike(rows)
        else:
            self.proofs += '""' in text or len(rows) > 1 or text.count(separator) >= len(fields)

    def _add_rows_alike(self, rows: Sequence[list[str]]) -> None:
        """Note a quoted field whose lines look like rows of their own, the more so where they are alike besides the text."""
        shapes = [
            {_shape(value) for value in column}
            for name, column in zip(self.header, zip(*rows, strict=True), strict=False)
            if name != self.text_column
        ]
        if any(len(of_column) == 1 and of_column != {""} for of_column in shapes):
            self.glued += 1
        else:
            self.perhaps_glued += 1


def recognise(uri: str, options: ReadOptions) -> Layout | None:
    """The layout of a file; None when it is empty.

    Raises
    ------
    DataContractError
        The header cannot be read, or quotes may mean two things.
    """
    start, hint = _start(uri, options)
    if not start:
        return None
    separators = [options.known_separator() or hint] if options.separator or hint else _separators(uri, start, options)

    def tally(separator: str, quoting: Quoting) -> _Tally:
        found = records(_lines(uri, options), separator, quoting)
        header = next(found)
        if header.fields is None:
            raise DataContractError(f"{uri}: the header cannot be read: {header.text!r:.200}")
        pattern = _QUOTED_BY_BACKSLASH if quoting == "backslash" else _QUOTED
        result = _Tally([name.strip() for name in header.fields], options.text_column, pattern.pattern)
        result.is_header_quoted = header.fields != header.text.split(separator)
        for record in found:
            result.add(record, separator)
        return result

    quoting: Quoting = "standard" if options.quoting == "auto" else options.quoting
    tallies = {str(separator): tally(str(separator), quoting) for separator in separators}
    separator = min(tallies, key=lambda sign: tallies[sign].flaws)
    chosen = tallies[separator]
    if options.quoting == "auto":
        quoting, chosen = _quoting(uri, separator, chosen, lambda other: tally(separator, other), options)
    columns = chosen.header if chosen.filled_without_name else chosen.header[: chosen.width]
    return Layout(separator, quoting, distinct(columns), chosen.spare and not chosen.filled_without_name)


def rows_of(uri: str, layout: Layout, options: ReadOptions) -> Iterator[tuple[list[str] | str, str]]:
    """Rows below the header: the fields, or why there are none, and what came in."""
    found = records(_lines(uri, options), layout.separator, layout.quoting)
    next(found)
    return rows_among(found, layout)


def rows_among(found: Iterator[Record], layout: Layout) -> Iterator[tuple[list[str] | str, str]]:
    """Records as rows: the fields, or why there are none, and what came in."""
    n = len(layout.columns)
    for record in found:
        fields = record.fields
        if fields is None and record.flaw == MALFORMED:
            fields = fields_as_they_stand(record, layout.separator, n)
        if fields is None:
            yield f"malformed_quotes: {record.flaw}", record.text
        elif _is_blank(record, n) or _is_header(fields, layout.columns):
            continue
        elif len(fields) == n or (layout.spare and len(fields) > n and not any(fields[n:])):
            yield fields[:n], record.text
        else:
            yield f"too_{'many' if len(fields) > n else 'few'}_fields: expected {n}, found {len(fields)}", record.text


def _is_blank(record: Record, width: int) -> bool:
    """Whether a line holds nothing but spaces, where a row holds several fields."""
    # Programs of DOS end a file with a sign of its own.
    return width > 1 and len(record.fields or ()) == 1 and not record.text.strip().strip("\x1a")


def _is_header(fields: list[str], columns: Sequence[str]) -> bool:
    """Whether a row is the header once more, as where files were put one behind the other."""
    named = [name.strip().strip("\ufeff") for name in fields[: len(columns)]]
    return len(columns) > 1 and named == columns


def _start(uri: str, options: ReadOptions) -> tuple[str, str | None]:
    """The header as text, and the separator that Excel's line above it names."""
    lines = text_lines(uri, options)
    first = next((line for line in lines if line.strip()), "")
    hint = _EXCEL_HINT.match(first)
    if hint:
        first = next((line for line in lines if line.strip()), "")
    # A name in quotes may hold line breaks, so that the first line alone does not tell the separator.
    start = [first]
    while "".join(start).count('"') % 2 and len(start) < _HEADER_LINES and (line := next(lines, None)) is not None:
        start.append(line)
    return "".join(start), hint and hint[1]


def _lines(uri: str, options: ReadOptions) -> Iterator[str]:
    """Lines from the header on."""
    lines = itertools.dropwhile(lambda line: not line.strip(), text_lines(uri, options))
    first = next(lines, "")
    return lines if _EXCEL_HINT.match(first) else itertools.chain([first], lines)


def _separators(uri: str, header: str, options: ReadOptions) -> list[str]:
    """Separators that the header allows, the likeliest first; several only where it does not tell them apart."""
    if uri.lower().removesuffix(".gz").endswith(".tsv") and "\t" in header:
        return ["\t"]
    parsed = {sign: next(records(iter([header]), sign, "standard")).fields or [] for sign in _SEPARATORS}
    with_text = [sign for sign in _SEPARATORS if options.text_column in [name.strip() for name in parsed[sign]]]
    # What stands in quotes separates nothing.
    bare = _QUOTED.sub("", header)
    counts = {sign: bare.count(sign) for sign in with_text or _SEPARATORS}
    most = max(counts.values())
    if most:
        return [sign for sign, count in counts.items() if count == most]
    # One column: separators in its rows are text, but one that ends each of them is none; a comma may well end a sentence.
    ends = {line.rstrip("\r\n")[-2:] for line in itertools.islice(_lines(uri, options), 1, None) if line.strip()}
    signs = {end[-1:] for end in ends}
    is_spare = len(signs) == 1 and signs < set(_SEPARATORS) and (signs != {","} or ends == {'",'})
    return [signs.pop() if is_spare else _NO_SEPARATOR]


def _quoting(
    uri: str, separator: str, standard: _Tally, tally: Callable[[Quoting], _Tally], options: ReadOptions
) -> tuple[Quoting, _Tally]:
    """What quotes mean: what a standard reader makes of the file, against what readers of other kinds do."""
    # Who doubles quotes puts a text that holds one into quotes.
    doubtful = standard.flaws + standard.bare
    if standard.has_escapes and doubtful:
        backslash = tally("backslash")
        is_glued = not backslash.is_header_quoted and (backslash.glued or backslash.perhaps_glued)
        is_proven = backslash.is_header_quoted or backslash.proofs
        is_better = backslash.flaws < standard.flaws or (is_proven and backslash.flaws + backslash.bare < doubtful)
        if is_better and not is_glued:
            return "backslash", backslash
    # Tabs and bars hardly stand in texts, and such exports seldom quote.
    is_bare_kind = separator in "\t|"
    glued = standard.glued + (standard.perhaps_glued if is_bare_kind else 0)
    is_suspect = standard.malformed or standard.unclosed or glued
    if not is_suspect or standard.is_header_quoted or (standard.proofs and not (glued and is_bare_kind)):
        return "standard", standard
    if not standard.proofs and not standard.perhaps_glued:
        without = tally("none")
        if without.flaws < standard.flaws + glued if is_bare_kind else glued and not without.flaws and without.width > 2:
            return "none", without
    if glued:
        raise DataContractError(
            f"{uri}: a quote opens in one row and closes in a later one, so that it may be one text of several lines "
            "or rows of which two hold a quote; write the file anew with all fields in quotes"
            + options.or_set("quoting", "`standard` for the former and to `none` for the latter")
        )
    return "standard", standard


def _without_quoted_fields(text: str, separator: str, quoted_field: str) -> str:
    sign = re.escape(separator)
    return re.sub(rf"(?s)(^|{sign}){quoted_field}(?=[\r\n]*\Z|{sign})", r"\1", text)


def _shape(value: str) -> str:
    """What a value looks like: words with a digit, as ids and dates have them, become one sign, and other words another."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\w*\d\w*", "9", value.strip('"')))


def _without_trailing(names: list[str]) -> list[str]:
    """Column names without the empty ones at the end; one is always left."""
    n = len(names)
    while n > 1 and not names[n - 1]:
        n -= 1
    return names[:n]


def distinct(columns: Sequence[str]) -> list[str]:
    """Column names without repetition: the second ``a`` becomes ``a.1``, so that neither hides the other's values."""
    distinct: dict[str, None] = {}
    for column in columns:
        names = itertools.chain([column], (f"{column}.{number}" for number in itertools.count(1)))
        distinct[next(name for name in names if name not in distinct)] = None
    return list(distinct)
