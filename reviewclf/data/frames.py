"""Small tables read whole: gold labels, votes, files to predict on. Sources of any size go through `sources`."""

from __future__ import annotations

import io

import fsspec
import pandas as pd

from reviewclf.errors import DataContractError
from reviewclf.outages import reading

READABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def read_frame(uri: str, *, setting: str = "the path") -> pd.DataFrame:
    """Read a CSV, TSV, JSON Lines or Parquet file from a local path or ``s3://``.

    Text columns stay text: ids are not turned into numbers («007» stays «007»), only empty cells are missing.

    Raises
    ------
    DataContractError
        The file is missing, empty, of another kind, or cannot be parsed; the message names it and `setting`.
    SourceUnavailableError
        The server that holds it is away.
    """
    suffix = next((ending for ending in READABLE if uri.lower().endswith(ending)), None)
    if suffix is None:
        raise DataContractError(f"{uri}: unknown kind of file; expected one of {', '.join(READABLE)} ({setting})")
    try:
        with reading(uri), fsspec.open(uri, "rb") as file:
            data: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise DataContractError(f"{uri}: cannot be read: {error}; check {setting}") from error
    if not data.strip():
        raise DataContractError(f"{uri}: is empty; check {setting}")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(io.BytesIO(data))
        text = _decode(data)
        if suffix in (".jsonl", ".ndjson"):
            return pd.read_json(io.StringIO(text), lines=True, dtype=False)
        separator = "\t" if suffix == ".tsv" else _separator(text)
        return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError, OSError) as error:
        raise DataContractError(f"{uri}: cannot be parsed as {suffix[1:]}: {error}") from error


def write_frame(frame: pd.DataFrame, path: str) -> None:
    """Write `frame` as CSV, TSV, JSON Lines or Parquet, by the ending of `path`.

    Raises
    ------
    DataContractError
        Unknown ending, or the file cannot be written.
    """
    suffix = next((ending for ending in READABLE if path.lower().endswith(ending)), None)
    try:
        if suffix == ".parquet":
            frame.to_parquet(path, index=False)
        elif suffix in (".jsonl", ".ndjson"):
            frame.to_json(path, orient="records", lines=True, force_ascii=False, date_format="iso")
        elif suffix is not None:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        else:
            raise DataContractError(f"{path}: unknown kind of file; expected one of {', '.join(READABLE)}")
    except OSError as error:
        raise DataContractError(f"{path}: cannot be written: {error}") from error


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1251")


def _separator(text: str) -> str:
    header = text.split("\n", 1)[0]
    return max(",;\t|", key=header.count)
