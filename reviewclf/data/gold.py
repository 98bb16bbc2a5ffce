"""Gold: reviews labelled by people, read from the file that the settings name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import fsspec
import pandas as pd

from reviewclf.data.dataset import prepare_gold
from reviewclf.data.frames import read_frame
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy


@dataclass(frozen=True)
class Gold:
    """Gold rows (``review_id``, ``text_clean``, ``text_hash``, ``label``, and ``text`` as it came), their file and digest.

    Attributes
    ----------
    written_at : datetime or None
        The newest ``created_at``: when the last of the reviews was written, which a copy of the file does not change. Without
        that column, when the file was last modified (``LastModified`` on S3). None where neither can be told.
    """

    frame: pd.DataFrame
    uri: str
    digest: str
    written_at: datetime | None = None


def load_gold(settings: Settings, taxonomy: Taxonomy) -> Gold | None:
    """Read and check ``REVIEWCLF_GOLD``; None when it is empty.

    Raises
    ------
    DataContractError
        The file cannot be read or a row breaks the contract; the message names file, row and value.
    """
    if settings.gold is None:
        return None
    raw = read_frame(settings.gold, setting="REVIEWCLF_GOLD")
    frame = prepare_gold(raw, taxonomy.names, name=settings.gold)
    frame["text"] = raw["text"].astype(str).to_numpy()
    return Gold(
        frame=frame, uri=settings.gold, digest=digest_of(frame.to_dict("records")), written_at=_written_at(raw, settings.gold)
    )


def _written_at(raw: pd.DataFrame, uri: str) -> datetime | None:
    if "created_at" in raw.columns:
        times = pd.to_datetime(raw["created_at"], errors="coerce", utc=True, format="mixed").dropna()
        if len(times):
            newest: datetime = times.max().to_pydatetime()
            return newest
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        modified: datetime = filesystem.modified(path)
    except (OSError, ValueError, NotImplementedError):
        return None
    return modified if modified.tzinfo else modified.replace(tzinfo=UTC)
