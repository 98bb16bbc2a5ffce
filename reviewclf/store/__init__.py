"""Delta tables, snapshots, manifests and journals below one root: what the stages read and write."""

from reviewclf.store.store import Change, Snapshot, StageResult, Store

__all__ = ["Change", "Snapshot", "StageResult", "Store"]
