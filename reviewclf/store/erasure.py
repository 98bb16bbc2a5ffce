"""Older versions of tables that are ended at once, because they hold what was erased."""

from __future__ import annotations

from reviewclf.store.delta import log_version
from reviewclf.store.retention import DATASETS, named_keys
from reviewclf.store.store import Store

# Manifests that stay whatever happens to what they name.
_LASTING = (f"stages/{DATASETS}/", "stages/promotions/")


def end_older_versions(store: Store) -> int:
    """Remove all snapshots but the newest, and the versions of tables that only they held; how many files that were.

    No other run may be going on. A run of this that was killed is finished by the next one.
    """
    snapshot = store.snapshot()
    current: set[str] = set()
    logged: set[str] = set()
    for name, held in snapshot.tables.items():
        logged |= store.delta.parts_since(name, -1)
        newest = store.delta.open(name).version()
        current |= {*store.delta.parts(name, held.version), *store.delta.parts(name, newest)}
    parts = (logged - current) & store.find("tables").keys()
    newest_key = f"snapshots/{snapshot.version:012d}.json"
    snapshots = [key for key in store.find("snapshots") if key != newest_key]
    removed = [*snapshots, *manifests_naming(store, parts), *sorted(parts)]
    for key in removed:
        store.remove(key)
    for name, held in snapshot.tables.items():
        table = store.delta.open(name)
        if table.version() != held.version:
            # A killed run has written a version that no snapshot names; the next commit to the table ends it.
            continue
        table.create_checkpoint()
        log = store.find(f"tables/{name}/_delta_log")
        older = [key for key in log if (version := log_version(name, key)) is not None and version < held.version]
        for key in older:
            store.remove(key)
        removed += older
    return len(removed)


def manifests_naming(store: Store, keys: set[str]) -> list[str]:
    """Keys of the manifests that name any of `keys`; the stages will work again where they are asked to.

    Those of training sets and promotions are left out: they stay.
    """
    manifests = [key for key in store.find("stages") if key.endswith(".json") and not key.startswith(_LASTING)]
    return [key for key, data in sorted(store.read_many(manifests).items()) if named_keys(data) & keys] if keys else []
