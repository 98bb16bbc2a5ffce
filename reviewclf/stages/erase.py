"""Erasure: a person's review leaves tables, versions, outputs of stages, journals and training sets, and does not come back."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reviewclf.data.erasure import Traces, blotted, find_traces, of_traces, with_blotted_reports, without_traces
from reviewclf.data.gold import load_gold
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.stages.dataset import list_datasets
from reviewclf.store import Change, Snapshot, Store
from reviewclf.store.erasure import end_older_versions, manifests_naming
from reviewclf.store.retention import named_keys
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)


def erase(settings: Settings, review_ids: Collection[str], *, dry_run: bool = False) -> Manifest:
    """Erase reviews, now and for good. No other run may be going on; a run of this that was killed is finished by the next one.

    The store cannot be read any more as it was before. What names the reviews outside of the store (the source, gold, MLflow's
    reports, back-ups) is left to people.

    Parameters
    ----------
    review_ids : collection of str
        Ids of reviews, as the store or their source numbers them.
    dry_run : bool
        Change nothing, and say what there is.

    Returns
    -------
    Manifest
        ``counts``: ``reviews`` found, ``rows`` erased from tables, ``outputs`` of stages and ``lines`` of journals that held
        something, ``shared`` texts that others have written too and that stay as theirs; ``details``: ``rows`` by table,
        ``unknown`` ids, ``in_gold`` (how many of the texts gold has), ``datasets`` that held one for training or validation,
        ``versions`` trained on those, and ``unclear``: versions whose training set is not in the store any more.
    """
    store = Store(settings.store_uri)
    ids = sorted(set(review_ids))
    gold = load_gold(settings, Taxonomy.load(settings.taxonomy))
    of_gold: set[str] = set() if gold is None else set(gold.frame["text_hash"])
    traces = find_traces(store, store.snapshot(), ids, of_gold)
    datasets = _trained_on(settings, store, traces)
    versions, unclear = _versions(settings, datasets)
    details: dict[str, Any] = {
        "unknown": [review_id for review_id in ids if review_id not in traces.found],
        "in_gold": len(traces.hashes & of_gold),
        "datasets": datasets,
        "versions": versions,
        "unclear": unclear,
        "dry_run": dry_run,
    }
    for name in ("datasets", "versions"):
        if details[name]:
            # Said before it is done: a killed run could not tell it any more.
            logger.info("trained on what is erased: %s %s", name, ", ".join(details[name]))
    counts = {"reviews": len(traces.found), "shared": len(traces.hashes - traces.gone - of_gold)}
    if dry_run:
        details["rows"] = without_traces(store, store.snapshot(), traces, dry_run=True)[1]
        counts["rows"] = sum(details["rows"].values())
        return Manifest(stage="erase", digest=digest_of([ids, details]), counts=counts, details=details)
    # The tables last: as long as they hold the reviews, a run after a killed one knows their texts.
    counts["outputs"] = _erase_outputs(store, traces)
    counts["lines"] = _erase_lines(store, traces)
    _blot_manifests(store, traces)
    details["rows"] = _erase_rows(store, ids, of_gold)
    counts["rows"] = sum(details["rows"].values())
    end_older_versions(store)
    return Manifest(stage="erase", digest=digest_of([ids, details]), counts=counts, details=details)


def _erase_rows(store: Store, ids: list[str], of_gold: set[str]) -> dict[str, int]:
    counts: dict[str, int] = {}

    def decide(base: Snapshot) -> Change | None:
        traces = find_traces(store, base, ids, of_gold)
        replace, found = without_traces(store, base, traces)
        counts.clear()
        counts.update(found)
        digests = traces.digests()
        fresh = digests.filter(
            pa.array(~np.isin(digests["digest"].to_numpy(), store.read(base, "erased")["digest"].to_numpy()))
        )
        append = {"erased": store.put_part(fresh)}
        return Change(f"erase:{base.version}:{digest_of(ids)}", append, replace) if replace or fresh.num_rows else None

    store.publish(decide)
    return counts


# -- what was made of the tables -------------------------------------------------------------------------------------------


def _trained_on(settings: Settings, store: Store, traces: Traces) -> list[str]:
    """Digests of training sets that hold one of the reviews for training or validation, the newest first."""
    found = []
    for _, manifest in list_datasets(settings):
        rows = store.read(manifest, "dataset")
        split = np.array(rows["split"].to_pylist(), dtype=object)
        if (of_traces(traces, rows) & (split != "test")).any():
            found.append(manifest.digest)
    return found


def _versions(settings: Settings, datasets: Collection[str]) -> tuple[list[str], list[str]]:
    """Versions that were trained on one of these, with their aliases; and those of whose training set nothing is known."""
    from reviewclf.registry.model import aliases, dataset_of, versions
    from reviewclf.registry.tracking import Tracker

    tracker = Tracker(settings.tracking_uri)
    named: dict[str, list[str]] = {}
    for alias, number in aliases(tracker).items():
        named.setdefault(number, []).append(alias)
    known = {manifest.digest for _, manifest in list_datasets(settings)}
    trained, unclear = [], []
    for number in (str(version.version) for version in versions(tracker)):
        dataset = dataset_of(tracker, number)
        if dataset in datasets:
            trained.append(f"{number} ({', '.join(sorted(named[number]))})" if number in named else number)
        elif dataset not in known:
            unclear.append(number)
    return trained, unclear


def _erase_outputs(store: Store, traces: Traces) -> int:
    """Erase the reviews from outputs of stages, and from parts of older versions; how many files held any.

    What training sets consist of, and what the watch over drift compares nights with, is written anew under its name. The
    others go, with the manifests that name them.
    """
    snapshot = store.snapshot()
    current = {key for name in snapshot.tables for key in snapshot.keys(name)}
    lasting = named_keys(store.read_bytes(f"snapshots/{snapshot.version:012d}.json")) if snapshot.version else set()
    datasets = {
        key: Manifest.model_validate_json(data) for key, data in store.read_many(list(store.find("stages/dataset"))).items()
    }
    of_datasets = {part: key for key, manifest in datasets.items() for name in manifest.outputs for part in manifest.keys(name)}
    erased = 0
    gone: set[str] = set()
    for key in (*store.find("objects"), *store.find("tables")):
        if key in current or not key.endswith(".parquet") or "/_delta_log/" in key:
            continue
        rows = store.read_table([key])
        kept = rows.filter(pa.array(~of_traces(traces, rows)))
        if "report" in rows.column_names:
            kept = with_blotted_reports(traces, kept)
        if kept.equals(rows):
            continue
        erased += 1
        if key not in lasting and key not in of_datasets and "report" not in rows.column_names:
            gone.add(key)
            continue
        buffer = io.BytesIO()
        pq.write_table(kept, buffer, compression="zstd")
        store.overwrite(key, buffer.getvalue())
        if key in of_datasets:
            manifest = datasets[of_datasets[key]]
            before: Any = manifest.details.get("erased_rows") or 0
            details = {**manifest.details, "erased_rows": before + rows.num_rows - kept.num_rows}
            datasets[of_datasets[key]] = manifest = manifest.model_copy(update={"details": details})
            store.overwrite(of_datasets[key], manifest.model_dump_json(indent=1).encode())
    for key in (*manifests_naming(store, gone), *sorted(gone)):
        store.remove(key)
    return erased


def _erase_lines(store: Store, traces: Traces) -> int:
    """Erase the reviews from journals; how many lines were about one."""
    marks = [*traces.gone, *traces.beginnings]
    erased = 0
    for key in store.find("journal"):
        lines = store.read_lines(key)
        kept = [line for line in lines if not any(mark in line for mark in marks)]
        erased += len(lines) - len(kept)
        if not kept and lines:
            store.remove(key)
        elif len(kept) < len(lines):
            store.overwrite(key, "".join(f"{line}\n" for line in kept).encode(errors="surrogateescape"))
    return erased


def _blot_manifests(store: Store, traces: Traces) -> None:
    """Blot out the texts where manifests show some, as examples of what moved."""
    for key, data in store.read_many([key for key in store.find("stages") if key.endswith(".json")]).items():
        said = json.loads(data)
        clean = blotted(traces, said)
        if clean != said:
            store.overwrite(key, json.dumps(clean, ensure_ascii=False, indent=1).encode())
