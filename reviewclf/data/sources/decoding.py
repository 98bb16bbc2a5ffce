"""Bytes of a file, local or remote, plain or gzipped, as lines of text in the encoding that they are in."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

import fsspec

from reviewclf.data.sources.options import ReadOptions
from reviewclf.errors import DataContractError

_BLOCK = 1 << 20
# What a remote file is fetched by; s3fs alone would read ahead 50 MiB and hold them twice.
_REMOTE_BLOCK = 4 << 20
_GZIP = b"\x1f\x8b"
# How files begin that are no text, whatever their names say.
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or another zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
# Text of these encodings holds next to no NUL bytes; Russian UTF-16 without its mark holds one in every ASCII character.
_MAX_NUL_SHARE = 0.05
# The longer marks first, for UTF-32's begins as UTF-16's does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Any bytes are text of any of them. The ten commonest letters are two thirds of a Russian text, and in a wrong code page less.
_CODE_PAGES = ("cp1251", "koi8-r", "cp866", "iso8859-5", "mac-cyrillic")
_COMMON_LETTERS = frozenset("оеаинтсрвл")
# KOI8-R has small letters where cp1251 has capitals, Mac Cyrillic one of them: a word that goes from one to the other was read
# in the wrong code page.
_CASE_TURNED = re.compile("[а-яё][А-ЯЁ]")
_TELLING_LETTERS = 40


class _Flaw(NamedTuple):
    """Where bytes stop being text of an encoding, and how many of their non-ASCII characters say that it is that encoding."""

    offset: int
    valid: int
    broken: int


def open_file(uri: str) -> BinaryIO:
    """A file's bytes, unzipped where it is gzipped: its name does not always say so."""
    fs, path = fsspec.core.url_to_fs(uri)
    raw: BinaryIO = fs.open(path, "rb", block_size=_REMOTE_BLOCK)
    is_gzipped = raw.read(len(_GZIP)) == _GZIP
    raw.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzipped else raw


def text_lines(uri: str, options: ReadOptions) -> Iterator[str]:
    """Lines of a file with their line ends, in bounded memory.

    Raises
    ------
    DataContractError
        The file is in no known encoding, or not in the one that is set; names the file and the byte.
    """
    encoding = options.encoding or _recognised(uri, options)
    try:
        with open_file(uri) as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            ends_in_return = text.readline().endswith("\r")
            text.seek(0)
            # Python's csv puts no quotes around a lone carriage return, which then is a character of a text.
            text.reconfigure(newline="" if ends_in_return else "\n")
            # A mark is left over where the setting says utf-8 and not utf-8-sig.
            yield from (line.removeprefix("\ufeff") if number == 0 else line for number, line in enumerate(text))
    except (UnicodeError, LookupError) as error:
        way_out = options.or_set("encoding", "what it is")
        raise DataContractError(
            f"{uri}: cannot be read as {encoding}: {error}; write the file anew as UTF-8{way_out}"
        ) from error


def _recognised(uri: str, options: ReadOptions) -> str:
    """UTF-8 when the whole file is, else UTF-16 or UTF-32 when it says so, else the Russian code page that it reads best in."""
    with open_file(uri) as stream:
        start = stream.read(_BLOCK)
    for beginning, kind in _NO_TEXT.items():
        if start.startswith(beginning):
            raise DataContractError(f"{uri}: is {kind} and no text; write it as CSV, JSON Lines or Parquet, and name it so")
    for marks, encoding in _MARKS.items():
        if start.startswith(marks):
            return encoding
    if start.count(0) > len(start) * _MAX_NUL_SHARE:
        raise DataContractError(
            f"{uri}: is full of NUL bytes: no text, or UTF-16 without its byte order mark; write the file anew as UTF-8"
            + options.or_set("encoding", "utf-16-le or utf-16-be where it is the latter")
        )
    as_utf8 = _flaw(uri, "utf-8")
    if as_utf8 is None:
        return "utf-8-sig"
    way_out = options.or_set("encoding", "what it is")
    if as_utf8.valid > as_utf8.broken:
        # Almost any bytes are cp1251, so one broken byte would turn a whole UTF-8 file into gibberish.
        raise DataContractError(f"{uri}: is UTF-8 that is damaged at byte {as_utf8.offset}; write the file anew{way_out}")
    as_cp1251 = _flaw(uri, "cp1251")
    code_page = _code_page(start[max(0, as_utf8.offset - _BLOCK // 2) :])
    if code_page != "cp1251":
        return code_page
    if as_cp1251 is None:
        return "cp1251"
    raise DataContractError(
        f"{uri}: is neither UTF-8 (byte {as_utf8.offset}) nor cp1251 (byte {as_cp1251.offset}); "
        f"write the file anew as UTF-8{way_out}"
    )


def _code_page(sample: bytes) -> str:
    """The code page in which a text shows the letters that Russian is made of; cp1251 where there are too few to tell."""
    shares = {}
    for encoding in _CODE_PAGES:
        text = sample.decode(encoding, "replace")
        letters = [sign for sign in text.lower() if not sign.isascii()]
        if len(letters) < _TELLING_LETTERS:
            return _CODE_PAGES[0]
        common = sum(sign in _COMMON_LETTERS for sign in letters)
        shares[encoding] = (common - 2 * len(_CASE_TURNED.findall(text))) / len(letters)
    return max(_CODE_PAGES, key=lambda encoding: shares[encoding])


def _flaw(uri: str, encoding: str) -> _Flaw | None:
    """The first byte that is not of `encoding`; None when there is none."""
    decoder = codecs.getincrementaldecoder(encoding)(errors="strict")
    position = valid = 0
    with open_file(uri) as stream:
        while True:
            block = stream.read(_BLOCK)
            # A character that the last block cut in two counts from its first byte.
            held = decoder.getstate()[0]
            try:
                valid += _non_ascii(decoder.decode(block, final=not block))
            except UnicodeDecodeError as error:
                text = (held + block).decode(encoding, "replace")
                broken = text.count("\ufffd")
                return _Flaw(position - len(held) + error.start, valid + _non_ascii(text) - broken, broken)
            if not block:
                return None
            position += len(block)


def _non_ascii(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))
