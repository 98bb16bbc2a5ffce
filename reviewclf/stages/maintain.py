"""Keeping house: small parts are put together, and what nothing within retention names is removed."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.store import Store
from reviewclf.store.compaction import compact
from reviewclf.store.retention import remove_old

logger = logging.getLogger(__name__)


def maintain(settings: Settings, *, dry_run: bool = False, now: datetime | None = None) -> Manifest:
    """Keep house in the store, and among the checkpoints of trainings on this machine.

    May run beside everything else, be killed at any moment and run again.

    Parameters
    ----------
    dry_run : bool
        Change nothing, and say what would be done.
    now : datetime, optional
        The time that ages are counted from, for tests.

    Returns
    -------
    Manifest
        ``counts``: ``fewer_parts``, ``removed`` files and ``freed_bytes``; ``details``: ``compacted`` (parts fewer, by table),
        ``files`` and ``bytes`` removed by what they were, ``kept_datasets`` of versions that production may go back to.

    Raises
    ------
    RegistryError
        MLflow does not say which training sets are still needed; nothing was removed.
    """
    now = now or datetime.now(UTC)
    store = Store(settings.store_uri)
    datasets = _datasets_of_versions(settings)
    compacted = compact(store, dry_run=dry_run)
    removed = remove_old(store, settings.maintenance, datasets=datasets, now=now, dry_run=dry_run)
    limit = now - timedelta(days=settings.maintenance.keep_days)
    checkpoints = _old_checkpoints(settings.home.expanduser().resolve() / "checkpoints", limit)
    for folder in checkpoints if not dry_run else ():
        shutil.rmtree(folder, ignore_errors=True)
    details: dict[str, Any] = {
        "compacted": compacted,
        "files": removed.files,
        "bytes": removed.bytes,
        "checkpoints": len(checkpoints),
        "kept_datasets": sorted(datasets),
        "dry_run": dry_run,
    }
    counts = {
        "fewer_parts": sum(compacted.values()),
        "removed": sum(removed.files.values()) + len(checkpoints),
        "freed_bytes": sum(removed.bytes.values()),
    }
    verb = "would be removed" if dry_run else "removed"
    logger.info("%d parts fewer; %s: %d files, %d bytes", counts["fewer_parts"], verb, counts["removed"], counts["freed_bytes"])
    return Manifest(stage="maintain", digest=digest_of([details, now.isoformat()]), counts=counts, details=details)


def _datasets_of_versions(settings: Settings) -> set[str]:
    """Digests of the training sets of all versions with an alias, and of those that a rollback returns to."""
    from reviewclf.promotion.history import History, fold
    from reviewclf.registry.model import aliases, dataset_of

    history = History.of(settings)
    needed = {*fold(history.events()).kept, *aliases(history.tracker).values()}
    return {digest for version in needed if (digest := dataset_of(history.tracker, version))}


def _old_checkpoints(folder: Path, limit: datetime) -> list[Path]:
    """Folders of trainings that were given up: nobody has written to them since."""
    if not folder.is_dir():
        return []

    def newest(path: Path) -> float:
        return max((file.stat().st_mtime for file in (path, *path.rglob("*"))), default=0.0)

    return [path for path in sorted(folder.iterdir()) if path.is_dir() and newest(path) < limit.timestamp()]
