"""The files of a saved classifier: what to say of one that cannot be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from reviewclf.errors import RegistryError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file it is that the block cannot read.

    Raises
    ------
    RegistryError
        The block found the file missing or damaged.
    """
    try:
        yield
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read ({error.strerror}); give the folder of a saved classifier") from error
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise RegistryError(f"{path}: is damaged ({error!r:.200}); train the classifier anew") from error
