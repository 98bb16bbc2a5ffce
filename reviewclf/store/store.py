"""The store: Delta tables, stage manifests and snapshots, in a local folder or under ``s3://``.

Layout below the root::

    tables/<table>/                 Delta tables: see :mod:`reviewclf.store.delta`
    snapshots/000000000007.json     which version of each table belongs to version 7 of the store, written last
    stages/<stage>/<digest>.json    manifest of a finished stage, written last
    objects/ab/abcdef....parquet    what stages hand on; immutable, named by the digest of their bytes
    journal/<name>/...              lines on their way into a table, such as votes that were paid for

Two rules carry everything. An object is complete before anything names it, so a killed writer leaves at most an unnamed
file. Manifests, versions of tables and snapshots are created only where nothing lies yet: of two writers one wins and the
other learns of it. A snapshot names the versions of all tables at once, so a night's rows appear in ``clean`` and
``quarantine`` together or not at all.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, JsonValue, PrivateAttr, ValidationError
from pydantic_core import to_jsonable_python

from reviewclf import tables
from reviewclf.errors import ConflictError, StoreError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.store.delta import DeltaTables, digest_of_part, storage_options
from reviewclf.store.objects import Objects

if TYPE_CHECKING:
    from polars import DataFrame, LazyFrame

# So often a change is decided upon anew where other runs publish in between.
_ATTEMPTS = 10
# So many changes are remembered by their keys: far more than can be tried again after others were published.
_REMEMBERED = 2000


class TableVersion(BaseModel):
    """Which version of a Delta table a snapshot holds.

    Attributes
    ----------
    version : int
        The Delta table's.
    rows_since : int
        The version of the snapshot since which it holds the same rows; later ones lay them out anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    rows_since: int


class Snapshot(BaseModel):
    """What the store holds at one version.

    Attributes
    ----------
    version : int
        0 for an empty store, then one more with every commit.
    tables : dict of str to TableVersion
        By name; a table without rows that was never written to is not among them.
    applied : list of str
        Keys of the last commits; a commit whose key is here already changes nothing.
    state : dict
        Small facts that travel with the tables, such as watermarks of sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 0
    tables: dict[str, TableVersion] = {}
    applied: list[str] = []
    state: dict[str, JsonValue] = {}
    _parts: Callable[[str, int], list[str]] | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self.model_dump() == other.model_dump()

    def keys(self, table: str) -> list[str]:
        """Keys of the parts of `table`, in their order; empty when nothing was written to it yet."""
        held = self.tables.get(table)
        return [] if held is None or self._parts is None else self._parts(table, held.version)

    def identity(self, *names: str) -> dict[str, int]:
        """What tells the rows of these tables from those of other snapshots; laying them out anew changes nothing."""
        return {name: self.tables[name].rows_since for name in names if name in self.tables}

    def missing(self, table: str, keys: Iterable[str]) -> list[str]:
        """Those of the parts `keys` that `table` does not hold."""
        held = set(map(digest_of_part, self.keys(table)))
        return [key for key in keys if digest_of_part(key) not in held]


class Change(NamedTuple):
    """What a commit changes: see :meth:`Store.commit`."""

    key: str
    append: Mapping[str, Sequence[str]] = {}
    replace: Mapping[str, Sequence[str]] = {}
    state: Mapping[str, JsonValue] = {}
    is_data: bool = True


class StageResult(BaseModel):
    """What the work of a stage returns; :meth:`Store.run_stage` makes a manifest of it.

    Where `is_final` is False the manifest is not kept, so that the stage works again when it is run again.
    """

    outputs: dict[str, str | list[str]] = {}
    counts: dict[str, int] = {}
    details: dict[str, JsonValue] = {}
    is_final: bool = True


class Store(Objects):
    """Tables, manifests and snapshots below one root, which is given as for :class:`~reviewclf.store.objects.Objects`."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.delta = DeltaTables(self)

    # -- parts of tables -------------------------------------------------------------------------------------------

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

    def iter_tables(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The tables under `keys`, one at a time, so that memory is bounded by the largest part."""
        for key in keys:
            with self.errors("read", key):
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

    def scan(self, keys: Sequence[str], schema: pa.Schema, *, part: str | None = None) -> LazyFrame:
        """The rows under `keys` as a Polars query, to be joined and filtered without being read whole.

        Parameters
        ----------
        keys : sequence of str
            Parts of tables or outputs of stages; none give no rows.
        schema : Schema
            Their contract; columns that an earlier part lacks are null.
        part : str, optional
            Name of a column that is to hold the key of each row's part.
        """
        import polars

        empty = polars.DataFrame(schema.empty_table())
        if not keys:
            return empty.lazy() if part is None else empty.lazy().with_columns(polars.lit(None, polars.String).alias(part))
        rows = polars.scan_parquet(
            [self.address(key) for key in keys],
            schema=empty.schema,
            missing_columns="insert",
            extra_columns="ignore",
            include_file_paths=part,
            storage_options=storage_options(self.uri),
        )
        return rows if part is None else rows.with_columns(polars.col(part).str.strip_prefix(self.address("")))

    def collect(self, query: LazyFrame, schema: pa.Schema) -> pa.Table:
        """What a query finds, by Polars' streaming engine; rows come in no order of their own."""
        import polars

        with self.errors("read", "tables"):
            try:
                return query.select(schema.names).collect(engine="streaming").to_arrow().cast(schema)
            except polars.exceptions.PolarsError as error:
                raise StoreError(f"{self.uri}: cannot be read: {error}") from error

    def batches(self, query: LazyFrame, size: int) -> Iterator[DataFrame]:
        """What a query finds, in the order of the query, `size` rows at a time: memory is bounded by these."""
        import polars

        with self.errors("read", "tables"):
            try:
                yield from query.collect_batches(chunk_size=size, maintain_order=True, engine="streaming")
            except polars.exceptions.PolarsError as error:
                raise StoreError(f"{self.uri}: cannot be read: {error}") from error

    # -- manifests -------------------------------------------------------------------------------------------------

    def manifest(self, stage: str, digest: str) -> Manifest | None:
        """The committed manifest of a stage, or None when it has not finished."""
        key = f"stages/{stage}/{digest}.json"
        with self.errors("read", key):
            try:
                return Manifest.model_validate_json(self._fs.cat_file(self.path(key)))
            except FileNotFoundError:
                return None
            except ValidationError as error:
                raise StoreError(f"{self.uri}/{key}: is damaged ({error}); remove it and run the stage again") from error

    def manifests(self, stage: str) -> list[tuple[datetime, Manifest]]:
        """All committed manifests of a stage and when each was written, the newest first."""
        prefix = f"stages/{stage}/"
        found = {key: when for key, when in self.find(prefix).items() if key.endswith(".json")}
        read = ((when, self.manifest(stage, key.removeprefix(prefix).removesuffix(".json"))) for key, when in found.items())
        listed = [(when, manifest) for when, manifest in read if manifest is not None]
        return sorted(listed, key=lambda pair: (pair[0], pair[1].digest), reverse=True)

    def commit_manifest(self, manifest: Manifest) -> Manifest:
        """Make a stage's result visible; of two writers the first wins and both get its manifest."""
        key = f"stages/{manifest.stage}/{manifest.digest}.json"
        with self.errors("written", key):
            if self.create(key, manifest.model_dump_json(indent=1).encode()):
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

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The newest snapshot, or that of a version; version 0 with no tables when the store is empty.

        Raises
        ------
        StoreError
            There is none of this version, it is damaged, or the store has the format of an earlier version of the package.
        """
        name = f"{version:012d}.json" if version else self.newest("snapshots")
        if name is None:
            if self.newest("log") is not None:
                raise StoreError(
                    f"{self.uri}: has the format of an earlier version; take it over once with: reviewclf store migrate"
                )
            return Snapshot()
        key = f"snapshots/{name}"
        try:
            found = Snapshot.model_validate_json(self.read_bytes(key))
        except ValidationError as error:
            raise StoreError(f"{self.uri}/{key}: is damaged ({error}); restore it from a back-up") from error
        found._parts = self.delta.parts
        return found

    def newest(self, folder: str) -> str | None:
        """Name of the newest snapshot in `folder`; None where there is none."""
        with self.errors("read", folder):
            try:
                names = [str(path).rsplit("/", 1)[-1] for path in self._fs.ls(self.path(folder), detail=False)]
            except FileNotFoundError:
                # An empty store, and not a bucket that is missing or has not come back yet: that would look like one.
                if not self._local and not self._fs.exists(self._root.partition("/")[0]):
                    raise
                return None
        return max((name for name in names if name.endswith(".json")), default=None)

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
        is_data: bool = True,
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
        is_data : bool
            False where the same rows are only laid out anew.

        Raises
        ------
        ConflictError
            Another writer published after `base` was read: read the new snapshot, decide again, commit again.
        """
        if key in base.applied:
            return base
        parts = {name: list(keys) for name, keys in replace.items() if keys or name in base.tables}
        parts |= {name: [*parts.get(name, base.keys(name)), *keys] for name, keys in append.items() if keys}
        version = base.version + 1
        held = dict(base.tables)
        for name, keys in sorted(parts.items()):
            if keys != base.keys(name):
                number = self.delta.commit(name, keys, snapshot=version, change=key, is_data=is_data)
                before = held.get(name)
                # The same parts under the keys that they had before they were placed are no change.
                if before is None or number != before.version:
                    since = version if is_data or before is None else before.rows_since
                    held[name] = TableVersion(version=number, rows_since=since)
        facts = {**base.state, **state}
        if held == base.tables and facts == base.state:
            return base
        new = Snapshot(version=version, tables=held, applied=[*base.applied, key][-_REMEMBERED:], state=facts)
        new._parts = self.delta.parts
        name = f"snapshots/{version:012d}.json"
        with self.errors("written", name):
            if self.create(name, new.model_dump_json().encode()):
                return new
        raise ConflictError(f"{self.uri}: another run published version {version} first; run this stage again")
