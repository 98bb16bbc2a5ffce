"""How a file is to be read, and by which names its user can say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reviewclf.errors import SettingsError
from reviewclf.settings import IngestSettings

Quoting = Literal["standard", "backslash", "none"]


@dataclass(frozen=True)
class ReadOptions:
    """What is known of a file before it is opened; what is None (or ``auto``) is recognised from the file.

    Attributes
    ----------
    text_column : str or None
        Column that holds the texts: it must be there, unless `needs_text` is off.
    encoding, separator : str or None
        Of text files.
    quoting : str
        What quotes mean in delimited text: ``standard`` (fields may be quoted, quotes within are doubled), ``backslash`` (they
        stand behind a backslash) or ``none`` (a quote is a character as any other).
    batch_rows : int
        Rows of a Parquet file that are held at once.
    setting : str
        What names the file, for messages.
    pattern : str
        How these options are named where they are set, with ``{upper}`` or ``{lower}``; empty where they cannot be set.
    """

    text_column: str | None = None
    needs_text: bool = False
    encoding: str | None = None
    separator: str | None = None
    quoting: Literal["auto", "standard", "backslash", "none"] = "auto"
    batch_rows: int = 10_000
    setting: str = "REVIEWCLF_SOURCE"
    pattern: str = ""

    @classmethod
    def of(cls, settings: IngestSettings) -> ReadOptions:
        """The options of a source."""
        known = settings.model_dump(include={"text_column", "encoding", "separator", "quoting"})
        batch_rows = min(settings.chunk_rows, 10_000)
        return cls(**known, needs_text=True, batch_rows=batch_rows, pattern="REVIEWCLF_INGEST__{upper}")

    def or_set(self, option: str, value: str) -> str:
        """``, or set OPTION to VALUE`` for the end of a message; empty where there is no such setting."""
        return f", or set {self._name(option)} to {value}" if self.pattern else ""

    def known_separator(self) -> str | None:
        r"""The separator that is set, with ``\t`` for a tab.

        Raises
        ------
        SettingsError
            It is no single character.
        """
        if not self.separator:
            return None
        separator = "\t" if self.separator == r"\t" else self.separator
        if len(separator) != 1 or separator in '"\r\n':
            raise SettingsError(f"{self._name('separator')}={self.separator!r}: expected one character, such as , ; | or \\t")
        return separator

    def _name(self, option: str) -> str:
        return self.pattern.format(upper=option.upper(), lower=option) or option
