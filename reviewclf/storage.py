"""The store: content-addressed objects, stage manifests and a log of snapshots, in a local folder or under ``s3://``.

Layout below the root::

    objects/ab/abcdef....parquet    immutable, named by the digest of their bytes
    stages/<stage>/<digest>.json    manifest of a finished stage, written last
    log/000000000007.json           snapshot: which objects make up each table, as of version 7
    journal/<name>/...              lines on their way into a table, such as votes that were paid for

Two rules carry everything. An object is complete before anything names it, so a killed writer leaves at most an unnamed
file. Manifests and snapshots are created only where nothing lies yet: of two writers one wins and the other learns of it.
A snapshot names the parts of all tables at once, so a night's rows appear in ``clean`` and ``quarantine`` together or not
at all. The scheme is that of Delta Lake's log (Armbrust et al., VLDB 2020) with whole snapshots instead of deltas.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import to_jsonable_python

from reviewclf import tables
from reviewclf.errors import ConflictError, StoreError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.outages import is_away, space_hint

# So often a change is decided upon anew where other runs publish in between.
_ATTEMPTS = 10


class Snapshot(BaseModel):
    """What the store holds at one version.

    Attributes
    ----------
    version : int
        0 for an empty store, then one more with every commit.
    tables : dict of str to list of str
        Object keys that together make up each table, oldest first.
    applied : list of str
        Keys of all commits so far; a commit whose key is here already changes nothing.
    state : dict
        Small facts that travel with the tables, such as watermarks of sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 0
    tables: dict[str, list[str]] = {}
    applied: list[str] = []
    state: dict[str, JsonValue] = {}

    def keys(self, table: str) -> list[str]:
        """Object keys of `table`; empty when nothing was written to it yet."""
        return list(self.tables.get(table, []))

    def missing(self, table: str, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that `table` does not hold."""
        held = set(self.keys(table))
        return [key for key in keys if key not in held]


class Change(NamedTuple):
    """What a commit changes: see :meth:`Store.commit`."""

    key: str
    append: Mapping[str, Sequence[str]] = {}
    replace: Mapping[str, Sequence[str]] = {}
    state: Mapping[str, JsonValue] = {}


class StageResult(BaseModel):
    """What the work of a stage returns; :meth:`Store.run_stage` makes a manifest of it.

    Where `is_final` is False the manifest is not kept, so that the stage works again when it is run again.
    """

    outputs: dict[str, str | list[str]] = {}
    counts: dict[str, int] = {}
    details: dict[str, JsonValue] = {}
    is_final: bool = True


class Store:
    """Tables, manifests and snapshots below one root.

    Parameters
    ----------
    uri : str
        A local folder (created when missing) or ``s3://bucket/prefix``. S3 credentials and endpoint come from the
        standard AWS variables.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._fs, root = fsspec.core.url_to_fs(uri, **({"use_listings_cache": False} if "://" in uri else {}))
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(f"{uri}: cannot be used as a store ({error}); check REVIEWCLF_STORE") from error
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return self._local

    # -- objects ---------------------------------------------------------------------------------------------------

    def put_bytes(self, data: bytes, suffix: str) -> str:
        """Write `data` under the digest of its bytes and return its key; writing the same bytes again is free."""
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        key = f"objects/{digest[:2]}/{digest}{suffix}"
        with self._errors("written", key):
            if self._fs.exists(self._path(key)):
                return key
            self._create(key, data)
        return key

    def put_table(self, table: pa.Table) -> str:
        """Write `table` as Parquet (zstd) and return its key; equal tables get equal keys."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return self.put_bytes(buffer.getvalue(), ".parquet")

    def put_part(self, rows: pa.Table | Sequence[Mapping[str, Any] | BaseModel], schema: pa.Schema | None = None) -> list[str]:
        """Write rows as one part of a table and return its key in a list, which is empty where there are no rows.

        Parameters
        ----------
        rows : Table, or sequence of mapping or pydantic model
        schema : Schema, optional
            Needed where `rows` is no table.
        """
        if not isinstance(rows, pa.Table):
            plain = [row.model_dump() if isinstance(row, BaseModel) else row for row in rows]
            rows = pa.Table.from_pylist(plain, schema=schema)
        return [self.put_table(rows.combine_chunks())] if rows.num_rows else []

    def read_bytes(self, key: str) -> bytes:
        """Content of an object. Raises :class:`StoreError` naming it when it is missing."""
        with self._errors("read", key):
            data: bytes = self._fs.cat_file(self._path(key))
            return data

    def iter_tables(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The tables under `keys`, one at a time, so that memory is bounded by the largest part."""
        for key in keys:
            with self._errors("read", key):
                yield pq.read_table(io.BytesIO(self.read_bytes(key)), columns=list(columns) if columns is not None else None)

    def read_table(
        self, keys: Sequence[str], columns: Sequence[str] | None = None, *, schema: pa.Schema | None = None
    ) -> pa.Table:
        """The tables under `keys` as one; with no keys an empty table of `schema` (required then)."""
        parts = list(self.iter_tables(keys, columns))
        if parts:
            return pa.concat_tables(parts, promote_options="default")
        if schema is None:
            raise StoreError(f"{self.uri}: nothing to read and no schema given")
        empty = schema.empty_table()
        return empty.select(list(columns)) if columns is not None else empty

    def read(self, source: Snapshot | Manifest, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Table `name` of a snapshot, or output `name` of a manifest, as one table; empty where nothing was written to it."""
        return self.read_table(source.keys(name), columns, schema=tables.SCHEMAS.get(name))

    def iter_rows(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows under `keys` one after another, in bounded memory."""
        for part in self.iter_tables(keys, columns):
            yield from part.to_pylist()

    # -- manifests -------------------------------------------------------------------------------------------------

    def manifest(self, stage: str, digest: str) -> Manifest | None:
        """The committed manifest of a stage, or None when it has not finished."""
        key = f"stages/{stage}/{digest}.json"
        with self._errors("read", key):
            try:
                return Manifest.model_validate_json(self._fs.cat_file(self._path(key)))
            except FileNotFoundError:
                return None
            except ValidationError as error:
                raise StoreError(f"{self.uri}/{key}: is damaged ({error}); remove it and run the stage again") from error

    def manifests(self, stage: str) -> list[tuple[datetime, Manifest]]:
        """All committed manifests of a stage and when each was written, the newest first."""
        prefix = f"stages/{stage}/"
        found = {key: when for key, when in self.journals(prefix).items() if key.endswith(".json")}
        read = ((when, self.manifest(stage, key.removeprefix(prefix).removesuffix(".json"))) for key, when in found.items())
        listed = [(when, manifest) for when, manifest in read if manifest is not None]
        return sorted(listed, key=lambda pair: (pair[0], pair[1].digest), reverse=True)

    def commit_manifest(self, manifest: Manifest) -> Manifest:
        """Make a stage's result visible; of two writers the first wins and both get its manifest."""
        key = f"stages/{manifest.stage}/{manifest.digest}.json"
        with self._errors("written", key):
            if self._create(key, manifest.model_dump_json(indent=1).encode()):
                return manifest
        existing = self.manifest(manifest.stage, manifest.digest)
        if existing is None:
            raise ConflictError(f"{self.uri}/{key}: appeared and went while it was written; run the stage again")
        return existing

    def run_stage(self, stage: str, version: int, inputs: Mapping[str, Any], work: Callable[[], StageResult]) -> Manifest:
        """Run `work` once for these inputs; a finished stage returns its manifest without running again.

        Parameters
        ----------
        stage : str
            Name of the stage.
        version : int
            Raised whenever the stage's code changes what comes out.
        inputs : mapping
            Everything the result depends on: digests of manifests and files, parameters.
        work : callable
            Does the work and returns a :class:`StageResult`; what it writes goes through this store.
        """
        digest = digest_of({"stage": stage, "version": version, "inputs": dict(inputs)})
        finished = self.manifest(stage, digest)
        if finished is not None:
            return finished
        result = work()
        manifest = Manifest(
            stage=stage,
            digest=digest,
            inputs=to_jsonable_python(dict(inputs), fallback=str),
            **result.model_dump(exclude={"is_final"}),
        )
        return self.commit_manifest(manifest) if result.is_final else manifest

    # -- snapshots -------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The newest snapshot; version 0 with no tables when the store is empty."""
        with self._errors("read", "log"):
            try:
                names = [str(path).rsplit("/", 1)[-1] for path in self._fs.ls(self._path("log"), detail=False)]
            except FileNotFoundError:
                # An empty store, and not a bucket that is missing or has not come back yet: that would look like one.
                if not self._local and not self._fs.exists(self._root.partition("/")[0]):
                    raise
                return Snapshot()
        names = [name for name in names if name.endswith(".json")]
        if not names:
            return Snapshot()
        key = f"log/{max(names)}"
        try:
            return Snapshot.model_validate_json(self.read_bytes(key))
        except ValidationError as error:
            raise StoreError(f"{self.uri}/{key}: is damaged ({error}); restore it from a back-up") from error

    def publish(self, decide: Callable[[Snapshot], Change | None]) -> Snapshot:
        """Commit what `decide` makes of the newest snapshot; where another run was first, what it makes of the next one.

        Parameters
        ----------
        decide : callable
            Takes the newest snapshot and returns what to change, None where nothing is to be changed.

        Returns
        -------
        Snapshot
            The one that holds the change.

        Raises
        ------
        ConflictError
            Other runs kept publishing first.
        """
        for _ in range(_ATTEMPTS):
            base = self.snapshot()
            change = decide(base)
            if change is None:
                return base
            with contextlib.suppress(ConflictError):
                return self.commit(base, **change._asdict())
        raise ConflictError(f"{self.uri}: other runs kept publishing first; run this stage again")

    def commit(
        self,
        base: Snapshot,
        *,
        key: str,
        append: Mapping[str, Sequence[str]] = {},
        replace: Mapping[str, Sequence[str]] = {},
        state: Mapping[str, JsonValue] = {},
    ) -> Snapshot:
        """Publish new parts of tables on top of `base`, all together. What changes nothing makes no new version.

        Parameters
        ----------
        base : Snapshot
            What the caller read before it decided what to write.
        key : str
            Identity of this commit; a key that `base` holds already changes nothing.
        append, replace : mapping of table to object keys
            Parts added to a table, and tables whose parts are exchanged as a whole.
        state : mapping
            Entries of ``Snapshot.state`` to set.

        Raises
        ------
        ConflictError
            Another writer published after `base` was read: read the new snapshot, decide again, commit again.
        """
        parts = {**base.tables, **{name: list(keys) for name, keys in replace.items() if keys or name in base.tables}}
        parts |= {name: parts.get(name, []) + list(keys) for name, keys in append.items() if keys}
        facts = {**base.state, **state}
        if key in base.applied or (parts == base.tables and facts == base.state):
            return base
        new = Snapshot(version=base.version + 1, tables=parts, applied=[*base.applied, key], state=facts)
        name = f"log/{new.version:012d}.json"
        with self._errors("written", name):
            if self._create(name, new.model_dump_json().encode()):
                return new
        raise ConflictError(f"{self.uri}: another run published version {new.version} first; run this stage again")

    # -- journals: lines that are safe as soon as they are written ------------------------------------------------------

    def append_lines(self, key: str, lines: Sequence[str], part: int) -> None:
        """Add lines to the journal `key`: in a folder one file that grows, under ``s3://`` an object a call."""
        data = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        with self._errors("written", key):
            if self._local:
                path = Path(self._path(key))
                path.parent.mkdir(parents=True, exist_ok=True)
                # One write per call: a killed process leaves at most a last line without its end.
                handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    size = os.fstat(handle).st_size
                    if size and os.pread(handle, 1, size - 1) != b"\n":
                        # What a full disk has cut must not take the next line along.
                        data = b"\n" + data
                    # A full disk takes the beginning and says nothing.
                    if os.write(handle, data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                finally:
                    os.close(handle)
            else:
                self._fs.pipe_file(f"{self._path(key)}.{part:08d}", data)

    def journals(self, prefix: str) -> dict[str, datetime]:
        """Journals below `prefix` and when each was last written."""
        with self._errors("read", prefix):
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}
        files = {str(path).removeprefix(f"{self._root}/"): info for path, info in found.items()}
        return {key: _written_at(info) for key, info in sorted(files.items())}

    def read_lines(self, key: str) -> list[str]:
        """Lines of a journal that hold anything; the last one may be without its end. Bytes that are no UTF-8 are escaped.

        Nothing but a line feed ends a line: texts hold whatever else Unicode takes for an end.
        """
        return [line.decode(errors="surrogateescape") for line in self.read_bytes(key).split(b"\n") if line.strip()]

    def remove_journal(self, key: str) -> None:
        """Remove a journal whose lines are published."""
        with self._errors("removed", key), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    # -- plumbing --------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _create(self, key: str, data: bytes) -> bool:
        """Create `key` with `data` in one step; False, and nothing changed, when it exists already."""
        if self._local:
            return _create_local(Path(self._path(key)), data)
        try:
            self._fs.pipe_file(self._path(key), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _is_taken(error):
                return False
            raise
        return True

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"{self.uri}/{key}: is not there; was the store moved or cleaned?") from error
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.uri}/{key}: cannot be {verb}: {error}{space_hint(error)}") from error
        except Exception as error:
            if not is_away(error):
                raise
            raise StoreError(f"{self.uri}/{key}: cannot be {verb}, the server is away: {error}") from error


def _written_at(info: Mapping[str, Any]) -> datetime:
    when = info.get("LastModified", info.get("mtime"))
    return when if isinstance(when, datetime) else datetime.fromtimestamp(float(when or 0.0), tz=UTC)


def _is_taken(error: BaseException | None) -> bool:
    """Whether S3 refused a conditional write because the key exists, or because another writer is at it right now."""
    while error is not None:
        code = getattr(error, "response", {}).get("Error", {}).get("Code")
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            return True
        error = error.__cause__
    return False


def _create_local(path: Path, data: bytes) -> bool:
    # A hard link appears with its whole content or not at all, and fails where the name is taken: unlike os.replace it
    # never overwrites, unlike O_EXCL it never shows a half-written file.
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink()
    return True
