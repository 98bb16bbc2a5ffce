"""What a store holds, and what takes how much."""

from __future__ import annotations

from pydantic import BaseModel

from reviewclf.manifest import Manifest
from reviewclf.store.objects import File
from reviewclf.store.retention import DATASETS
from reviewclf.store.store import Store


class TableUsage(BaseModel):
    """One table: what the newest snapshot holds of it, and what else lies there.

    Attributes
    ----------
    version : int
        Of the Delta table.
    rows, parts, bytes : int
        At the newest snapshot.
    older_bytes : int
        Parts of older versions, and those that a killed run has left.
    log_bytes : int
        The table's log.
    """

    version: int
    rows: int
    parts: int
    bytes: int
    older_bytes: int
    log_bytes: int


class Usage(BaseModel):
    """Files and their bytes."""

    files: int = 0
    bytes: int = 0

    def add(self, file: File) -> None:
        """Count a file."""
        self.files += 1
        self.bytes += file.bytes


class Inventory(BaseModel):
    """What a store holds.

    Attributes
    ----------
    snapshot : int
        Version of the newest snapshot.
    tables : dict of str to TableUsage
        By name.
    others : dict of str to Usage
        ``datasets`` and ``outputs of stages`` (in a folder, what is a part of a table as well takes no space twice),
        ``journals``, ``manifests``, ``snapshots``, ``other``.
    """

    uri: str
    snapshot: int
    tables: dict[str, TableUsage]
    others: dict[str, Usage]

    @property
    def bytes(self) -> int:
        """All of it."""
        tables = sum(table.bytes + table.older_bytes + table.log_bytes for table in self.tables.values())
        return tables + sum(usage.bytes for usage in self.others.values())


_FOLDERS = {"journal": "journals", "stages": "manifests", "snapshots": "snapshots"}


def take_inventory(store: Store) -> Inventory:
    """Look at every file of a store."""
    snapshot = store.snapshot()
    files = store.files()
    usages = {}
    for name, held in sorted(snapshot.tables.items()):
        parts = store.delta.sizes(name, held.version)
        there = {key: file.bytes for key, file in files.items() if key.startswith(f"tables/{name}/")}
        log = sum(size for key, size in there.items() if "/_delta_log/" in key)
        now = sum(part.bytes for part in parts)
        usages[name] = TableUsage(
            version=held.version,
            rows=sum(part.rows for part in parts),
            parts=len(parts),
            bytes=now,
            older_bytes=sum(there.values()) - log - now,
            log_bytes=log,
        )
    datasets = [key for key in files if key.startswith(f"stages/{DATASETS}/")]
    manifests = [Manifest.model_validate_json(data) for data in store.read_many(datasets).values()]
    of_datasets = {key for manifest in manifests for name in manifest.outputs for key in manifest.keys(name)}
    others = {name: Usage() for name in ("datasets", "outputs of stages", *_FOLDERS.values(), "other")}
    for key, file in files.items():
        folder, _, rest = key.partition("/")
        if folder == "objects":
            others["datasets" if key in of_datasets else "outputs of stages"].add(file)
        elif folder != "tables" or rest.partition("/")[0] not in usages:
            others[_FOLDERS.get(folder, "other")].add(file)
    return Inventory(uri=store.uri, snapshot=snapshot.version, tables=usages, others=others)
