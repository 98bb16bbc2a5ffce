"""Models on this disk: fetched once, and the last champion at hand while the registry is away."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from reviewclf.registry.deployment import Version

logger = logging.getLogger(__name__)

_CHAMPION = "champion.json"
_MODELS = "models"
_UNFINISHED = ".unfinished-"


class Known(BaseModel):
    """What is kept beside a version's files."""

    model_config = ConfigDict(frozen=True)

    info: Version
    figures: dict[str, float]


class ModelCache:
    """Folder of fetched versions; several servers may share it.

    Parameters
    ----------
    folder : Path
        Made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, version: Version) -> Path:
        """Where the files of `version` lie, or would."""
        return self._folder / _MODELS / version.identity

    def get(self, version: Version, fetch: Callable[[Version, Path], None], *, anew: bool = False) -> Path:
        """Folder with the files of `version`, fetched at the first call; a killed fetch leaves nothing that counts.

        Parameters
        ----------
        version : Version
        fetch : callable
            Copies the files into an empty folder.
        anew : bool
            Fetch also what is here, which may be damaged. It stays until all files of the new copy have arrived.
        """
        path = self.path(version)
        if path.is_dir() and not anew:
            return path
        unfinished, old = (self._folder / _MODELS / f"{_UNFINISHED}{os.getpid()}-{uuid.uuid4().hex[:8]}" for _ in range(2))
        unfinished.mkdir(parents=True)
        try:
            fetch(version, unfinished)
            # Another server may have been faster.
            with contextlib.suppress(OSError):
                if anew:
                    path.rename(old)
            with contextlib.suppress(OSError):
                unfinished.rename(path)
        finally:
            for folder in (unfinished, old):
                shutil.rmtree(folder, ignore_errors=True)
        return path

    def remember_champion(self, known: Known) -> None:
        """Note which version to serve when the server starts while the registry is away."""
        scratch = self._folder / f"{_CHAMPION}.{os.getpid()}"
        scratch.write_text(known.model_dump_json(), encoding="utf-8")
        scratch.replace(self._folder / _CHAMPION)

    def last_champion(self) -> Known | None:
        """What :meth:`remember_champion` noted, if its files are still there."""
        path = self._folder / _CHAMPION
        try:
            known = Known.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            logger.warning("%s: cannot be used (%s); the registry will be asked", path, error)
            return None
        return known if self.path(known.info).is_dir() else None

    def prune(self, keep: Iterable[Version]) -> None:
        """Remove all versions but `keep`, and what killed fetches left."""
        names = {version.identity for version in keep}
        with contextlib.suppress(OSError):
            for path in (self._folder / _MODELS).iterdir():
                if path.name in names or (path.name.startswith(_UNFINISHED) and _runs(path.name)):
                    continue
                shutil.rmtree(path, ignore_errors=True)


def _runs(name: str) -> bool:
    """Whether the process that makes an unfinished folder still runs."""
    number = name.removeprefix(_UNFINISHED).partition("-")[0]
    import psutil

    return number.isdigit() and psutil.pid_exists(int(number))
