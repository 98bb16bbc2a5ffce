"""What a store need not keep: which snapshots, manifests, journals and files are removed, and in which order.

What names something goes before what it names, so that a killed run leaves files without a name and never a name without its
file; the next run removes them. Files that are younger than the grace period are never touched: a task may be about to name
them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from pydantic import BaseModel

from reviewclf.manifest import Manifest
from reviewclf.settings import MaintenanceSettings
from reviewclf.store.delta import log_version
from reviewclf.store.objects import File
from reviewclf.store.store import Snapshot, Store

DATASETS = "dataset"
# The history of the champion is written nowhere else.
_ALWAYS = "promotions/"
_KEY = re.compile(rb'"((?:objects|tables)/[^"\\]+)"')
_VERSION = re.compile(r"snapshots/(\d+)\.json")
# What files are called, by their folder; what names something stands before what it names.
_KINDS = {
    ".": "unfinished files",
    "snapshots": "snapshots",
    "stages": "manifests",
    "log": "snapshots of an earlier version",
    "journal": "journals",
    "_delta_log": "logs of tables",
    "tables": "parts of tables",
    "objects": "outputs of stages",
}
# Those that go for their age; the others when nothing names them.
_AGED = {_KINDS[folder] for folder in ("log", "journal", "_delta_log")}


class Removed(BaseModel):
    """What was removed: files and bytes by what they were."""

    files: dict[str, int] = {}
    bytes: dict[str, int] = {}


def remove_old(
    store: Store,
    options: MaintenanceSettings,
    *,
    datasets: Collection[str],
    now: datetime,
    dry_run: bool = False,
) -> Removed:
    """Remove what no snapshot, manifest or training set within retention names.

    Parameters
    ----------
    options : MaintenanceSettings
        What is within retention.
    datasets : collection of str
        Digests of training sets that stay whatever their age: those of versions that production may go back to.
    now : datetime
        The time that ages are counted from.
    dry_run : bool
        Only count.
    """
    # First the files, then the names: what is named in between is not among the files.
    files = store.files()
    if not store.newest("snapshots"):
        return Removed()
    graced = now - timedelta(hours=options.grace_hours)
    cutoff = min(graced, now - timedelta(days=options.keep_days))
    snapshots = kept_snapshots(files, options, cutoff)
    manifests = kept_manifests(files, options, cutoff, datasets)
    needed = _read_from(store, manifests & files.keys()) & files.keys()
    named, logs = _needed(store, files, snapshots, needed - snapshots, manifests)
    stays = snapshots | needed | manifests | named
    chosen = [
        (what, key, file)
        for key, file in files.items()
        if (what := _kind(key, logs)) and key not in stays and file.written < (cutoff if what in _AGED else graced)
    ]
    removed: list[tuple[str, File]] = []
    for what, key, file in sorted(chosen, key=lambda entry: list(_KINDS.values()).index(entry[0])):
        if not dry_run:
            # Somebody may have written it once more.
            written = store.written(key)
            if written is None or written > file.written:
                continue
            store.remove(key)
        removed.append((what, file))
    bytes_by: Counter[str] = Counter()
    for what, file in removed:
        bytes_by[what] += file.bytes
    return Removed(files=dict(Counter(what for what, _ in removed)), bytes=dict(bytes_by))


def named_keys(data: bytes) -> set[str]:
    """Keys of objects and parts that a manifest or a snapshot names anywhere."""
    return {key.decode() for key in _KEY.findall(data)}


def _kind(key: str, logs: Collection[str]) -> str | None:
    """What a file is, by its key; None where it is nothing that is ever removed."""
    if key.rsplit("/", 1)[-1].startswith(".new-"):
        return _KINDS["."]
    if "/_delta_log/" in key:
        return _KINDS["_delta_log"] if key in logs else None
    return _KINDS.get(key.partition("/")[0])


def kept_snapshots(files: dict[str, File], options: MaintenanceSettings, cutoff: datetime) -> set[str]:
    """Keys of snapshots that stay: the newest ones, the young ones, and the one that was the newest when those began."""
    found = sorted((key for key in files if _VERSION.fullmatch(key)), reverse=True)
    young = [key for key in found if files[key].written >= cutoff]
    return {*found[: max(options.keep_snapshots, len(young) + 1)], *young}


def kept_manifests(
    files: dict[str, File], options: MaintenanceSettings, cutoff: datetime, datasets: Collection[str]
) -> set[str]:
    """Keys of manifests that stay.

    Ages are counted from the newest manifest of the same stage: a stage that has had nothing to do for months still knows what
    it did last, and does not do it again.
    """
    by_stage: dict[str, list[str]] = {}
    for key in files:
        if key.startswith("stages/") and key.endswith(".json"):
            by_stage.setdefault(key.removeprefix("stages/").rpartition("/")[0], []).append(key)
    kept: set[str] = set()
    for stage, keys in by_stage.items():
        newest = max(files[key].written for key in keys)
        oldest = min(cutoff, newest - timedelta(days=options.keep_days))
        always = f"{stage}/".startswith(_ALWAYS)
        kept |= {key for key in keys if always or files[key].written >= oldest}
        if stage == DATASETS:
            kept |= set(sorted(keys, key=lambda key: files[key].written)[-options.keep_datasets :])
            kept |= {f"stages/{stage}/{digest}.json" for digest in datasets}
    return kept


def _read_from(store: Store, manifests: Collection[str]) -> set[str]:
    """Keys of the snapshots that training sets were made from, so that they can be made again."""
    cards = store.read_many(sorted(key for key in manifests if key.startswith(f"stages/{DATASETS}/")))
    versions = (Manifest.model_validate_json(data).details.get("snapshot") for data in cards.values())
    return {f"snapshots/{version:012d}.json" for version in versions if isinstance(version, int)}


def _needed(
    store: Store, files: Mapping[str, File], snapshots: set[str], single: set[str], manifests: set[str]
) -> tuple[set[str], set[str]]:
    """Keys that snapshots and manifests name, and files of the tables' logs that nothing needs.

    Of the time that `snapshots` cover, the tables stay readable at every version; of `single` ones at theirs alone.
    """
    names = store.read_many(sorted(snapshots | single | manifests & files.keys()))
    named = {key for data in names.values() for key in named_keys(data)}
    read = {key: Snapshot.model_validate_json(names[key]) for key in snapshots | single if key in names}
    logs: set[str] = set()
    for name in {table for snapshot in read.values() for table in snapshot.tables}:
        held = {key: snapshot.tables[name].version for key, snapshot in read.items() if name in snapshot.tables}
        versions = [version for key, version in held.items() if key in snapshots]
        for version in {version for key, version in held.items() if key in single}.union(versions and {min(versions)}):
            named |= set(store.delta.parts(name, version))
        named |= store.delta.parts_since(name, min(versions, default=-1))
        oldest = min(held.values())
        log = {key: number for key in files if (number := log_version(name, key)) is not None}
        first = max((number for key, number in log.items() if key.endswith(".parquet") and number <= oldest), default=0)
        logs |= {key for key, number in log.items() if number < first}
    return named, logs
