"""Gold: reviews labelled by people, read from the file that the settings name."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from reviewclf.data.dataset import prepare_gold
from reviewclf.data.frames import read_frame
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy


@dataclass(frozen=True)
class Gold:
    """Gold rows (``review_id``, ``text_clean``, ``text_hash``, ``label``, and ``text`` as it came), their file and digest."""

    frame: pd.DataFrame
    uri: str
    digest: str


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
    return Gold(frame=frame, uri=settings.gold, digest=digest_of(frame.to_dict("records")))
