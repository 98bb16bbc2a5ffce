"""Models on this disk: fetched once, and the last champion at hand while the registry is away."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from reviewclf.registry.deployment import Version

logger = logging.getLogger(__name__)


class Known(BaseModel):
    """What is kept beside a version's files."""

    model_config = ConfigDict(frozen=True)

    info: Version
    figures: dict[str, float]


class ModelCache:
    """Folder of fetched versions; several processes share it.

    Parameters
    ----------
    folder : Path
        Made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._models = folder / "models"
        self._champion = folder / "champion.json"

    def path(self, version: Version) -> Path:
        """Where the files of `version` lie, or would."""
        return self._models / version.identity

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
        # The processes of a server see a new version at the same moment: one fetches it, the others wait.
        with self._lock():
            if path.is_dir() and not anew:
                return path
            with tempfile.TemporaryDirectory(dir=self._models, prefix=".unfinished-", ignore_cleanup_errors=True) as scratch:
                new, old = Path(scratch, "new"), Path(scratch, "old")
                new.mkdir()
                fetch(version, new)
                if path.exists():
                    path.rename(old)
                new.rename(path)
        return path

    def remember_champion(self, known: Known) -> None:
        """Note which version to serve when the server starts while the registry is away."""
        scratch = self._champion.with_name(f"{self._champion.name}.{os.getpid()}")
        scratch.write_text(known.model_dump_json(), encoding="utf-8")
        scratch.replace(self._champion)

    def last_champion(self) -> Known | None:
        """What :meth:`remember_champion` noted, if its files are still there."""
        try:
            known = Known.model_validate_json(self._champion.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            logger.warning("%s: cannot be used (%s); the registry will be asked", self._champion, error)
            return None
        return known if self.path(known.info).is_dir() else None

    def prune(self, keep: Iterable[Version]) -> None:
        """Remove all versions but `keep`, and what killed fetches left."""
        names = {version.identity for version in keep}
        with contextlib.suppress(OSError), self._lock():
            for path in self._models.iterdir():
                if path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)

    def _lock(self) -> FileLock:
        self._models.mkdir(parents=True, exist_ok=True)
        return FileLock(self._models.with_name(".lock"))
