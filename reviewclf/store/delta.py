"""The Delta tables of a store, below ``tables/``. Each version of one holds exactly the parts that its writer meant.

A part is a Parquet file that is never changed, ``tables/<table>/<place>-<digest>.parquet``; ``place`` keeps the parts in
order. A writer names all parts that the table is to hold from now on; what the commit adds and removes follows from what the
newest version holds. So the parts of a writer that was killed before its snapshot was written leave with the next commit,
and two writers cannot mix: the second one meets the first one's version and has to decide anew. The commits are those of the
Delta protocol (Armbrust et al., VLDB 2020), made by delta-rs; on S3 they are conditional puts, without a lock service.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from reviewclf import tables
from reviewclf.errors import ConflictError, StoreError
from reviewclf.outages import space_hint
from reviewclf.store.objects import Objects

if TYPE_CHECKING:
    from deltalake import DeltaTable

# The application in whose name commits are made; its versions are those of the snapshots.
APPLICATION = "reviewclf"
# Longer values, such as texts, help nobody to skip a file.
_LONGEST_BOUND = 64
_PLACES = 8
# Versions live as long as a snapshot names them; `reviewclf store maintain` removes the others.
_CONFIGURATION = {"delta.logRetentionDuration": "interval 3650 days", "delta.checkpointInterval": "25"}


class PartSize(NamedTuple):
    """How large a part of a table is."""

    key: str
    rows: int
    bytes: int


class DeltaTables:
    """The tables below one root."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._parts: dict[tuple[str, int], list[str]] = {}

    def uri(self, name: str) -> str:
        """Where a table lies, for other tools."""
        return self._objects.address(f"tables/{name}")

    def open(self, name: str, version: int | None = None) -> DeltaTable:
        """A table, as of a version.

        Raises
        ------
        StoreError
            There is no such table or version.
        """
        from deltalake import DeltaTable

        with self._errors(name, "read" if version is None else f"read at version {version}"):
            return DeltaTable(self.uri(name), version=version, storage_options=storage_options(self._objects.uri))

    def parts(self, name: str, version: int) -> list[str]:
        """Keys of the parts that a version holds, in their order."""
        found = self._parts.get((name, version))
        if found is None:
            found = self._parts[name, version] = _parts_of(name, self.open(name, version))
        return list(found)

    def parts_since(self, name: str, version: int) -> set[str]:
        """Keys of all parts that came to the table after a version, also those that have left it again."""
        found: set[str] = set()
        commits = [key for key in self._objects.find(f"tables/{name}/_delta_log") if key.endswith(".json")]
        newer = [key for key in commits if (log_version(name, key) or 0) > version]
        for data in self._objects.read_many(newer).values():
            for line in data.splitlines():
                if added := json.loads(line).get("add"):
                    found.add(f"tables/{name}/{added['path']}")
        return found

    def sizes(self, name: str, version: int) -> list[PartSize]:
        """The parts that a version holds, in their order, with their rows and bytes."""
        found = pa.table(self.open(name, version).get_add_actions()).select(["path", "num_records", "size_bytes"]).to_pylist()
        listed = [PartSize(f"tables/{name}/{row['path']}", row["num_records"], row["size_bytes"]) for row in found]
        return sorted(listed)

    def rows(self, name: str, version: int) -> int:
        """How many rows a version holds."""
        return sum(part.rows for part in self.sizes(name, version))

    def commit(self, name: str, parts: Sequence[str], *, snapshot: int, change: str, is_data: bool = True) -> int:
        """Let the table hold `parts` and nothing else.

        Parameters
        ----------
        name : str
            A table with a contract.
        parts : sequence of str
            Keys, in order: parts that the table holds, and objects that become parts of it.
        snapshot : int
            Version of the snapshot that is to name the result; the version of the application's transaction.
        change : str
            Identity of the change, kept in the commit.
        is_data : bool
            False where the same rows are only laid out anew.

        Returns
        -------
        int
            The version that holds them.

        Raises
        ------
        ConflictError
            Another writer has committed in between.
        StoreError
            A part breaks the contract of the table.
        """
        from deltalake import CommitProperties, PostCommitHookProperties, Transaction
        from deltalake.transaction import AddAction, RemoveAction

        table = self._open_or_create(name)
        loaded = table.version()
        held = _parts_of(name, table)
        wanted = self._placed(name, parts)
        now = int(time.time() * 1000)
        removed: list[AddAction | RemoveAction] = [
            RemoveAction(_file(key), data_change=is_data, deletion_timestamp=now, partition_values={})
            for key in held
            if key not in set(wanted)
        ]
        added: list[AddAction | RemoveAction] = []
        for key in wanted:
            if key not in set(held):
                data = self._objects.read_bytes(key)
                added.append(AddAction(_file(key), len(data), {}, now, is_data, json.dumps(_statistics(data))))
        if removed or added:
            properties = CommitProperties(
                {"snapshot": str(snapshot), "change": change},
                max_commit_retries=0,
                app_transactions=[Transaction(APPLICATION, snapshot)],
            )
            hooks = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
            with self._errors(name, "written", after=loaded):
                table.create_write_transaction(
                    removed + added,
                    "append",
                    table.schema(),
                    commit_properties=properties,
                    post_commithook_properties=hooks,
                )
            loaded += 1
        self._parts[name, loaded] = wanted
        return loaded

    def _open_or_create(self, name: str) -> DeltaTable:
        from deltalake import DeltaTable, Schema

        schema = tables.SCHEMAS.get(name)
        if schema is None:
            raise StoreError(f"there is no contract for a table {name!r} in reviewclf/tables.py")
        options = storage_options(self._objects.uri)
        required = tables.REQUIRED.get(name, ())
        nullable = pa.schema([column.with_nullable(column.name not in required) for column in schema])
        with self._errors(name, "created", after=-1):
            if not DeltaTable.is_deltatable(self.uri(name), options):
                DeltaTable.create(
                    self.uri(name), nullable, mode="ignore", name=name, configuration=_CONFIGURATION, storage_options=options
                )
        table = self.open(name)
        with self._errors(name, "brought to its contract", after=table.version()):
            # A rule at a time, also where an earlier writer was killed in between.
            for rule, condition in tables.CHECKS.get(name, {}).items():
                if f"delta.constraints.{rule}" not in table.metadata().configuration:
                    table.alter.add_constraint({rule: condition})
            held = pa.schema(table.schema().to_arrow()).names
            if later := [column for column in schema if column.name not in held]:
                table.alter.add_columns(Schema.from_arrow(pa.schema(later)).fields)
        return self.open(name)

    @contextlib.contextmanager
    def _errors(self, name: str, verb: str, *, after: int | None = None) -> Iterator[None]:
        """Errors of delta-rs as ours; :class:`ConflictError` where another writer has written since version `after`."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            yield
        except (DeltaError, OSError) as error:
            options = storage_options(self._objects.uri)
            with contextlib.suppress(DeltaError, OSError):
                if after is not None and DeltaTable(self.uri(name), storage_options=options).version() > after:
                    raise ConflictError(f"{self.uri(name)}: another run wrote to it first; run this stage again") from error
            raise StoreError(f"{self.uri(name)}: cannot be {verb}: {error}{space_hint(error)}") from error

    def _placed(self, name: str, parts: Sequence[str]) -> list[str]:
        """Keys in the table of all `parts`, of which new ones are put there."""
        keys: list[str] = []
        last = 0
        following = _places_after(name, parts)
        for part, limit in zip(parts, following, strict=True):
            if part.startswith(f"tables/{name}/"):
                keys.append(part)
                last = _place(part)
                continue
            # A part that takes the place of another stands where that stood.
            last = last + 1 if limit is None or last + 1 < limit else last
            source = self._conforming(name, part)
            key = f"tables/{name}/{last:0{_PLACES}d}-{digest_of_part(source)}.parquet"
            self._objects.place(source, key)
            keys.append(key)
        return keys

    def _conforming(self, name: str, part: str) -> str:
        """The part, written anew where its columns are not those of the contract."""
        schema = tables.SCHEMAS[name]
        data = self._objects.read_bytes(part)
        with self._objects.errors("read", part):
            found = pq.read_schema(io.BytesIO(data))
            rows = pq.read_table(io.BytesIO(data))
            if not found.equals(schema):
                known = rows.select([column for column in schema.names if column in found.names])
                rows = pa.concat_tables([schema.empty_table(), known], promote_options="permissive").cast(schema)
                buffer = io.BytesIO()
                pq.write_table(rows, buffer, compression="zstd")
                part = self._objects.put_bytes(buffer.getvalue(), ".parquet")
        for column in tables.REQUIRED.get(name, ()):
            if rows[column].null_count:
                raise StoreError(f"{self.uri(name)}: {rows[column].null_count} row(s) of {part} lack {column}")
        _check(name, rows, part)
        return part


def log_version(name: str, key: str) -> int | None:
    """The version of a table that a file of its log is about; None where the key is none."""
    prefix = f"tables/{name}/_delta_log/"
    digits = key.removeprefix(prefix).partition(".")[0] if key.startswith(prefix) else ""
    return int(digits) if digits.isdigit() else None


def digest_of_part(key: str) -> str:
    """The digest in a part's name: the same wherever the part lies."""
    return key.rsplit("/", 1)[-1].rsplit("-", 1)[-1].removesuffix(".parquet")


@cache
def storage_options(uri: str) -> dict[str, str]:
    """What delta-rs and Polars need to know of S3: the same that boto3 reads from the standard variables and files."""
    if not uri.startswith("s3://"):
        return {}
    import boto3

    session = boto3.Session()
    client = session.client("s3")
    options = {
        "aws_conditional_put": "etag",
        "aws_endpoint": client.meta.endpoint_url,
        "aws_region": client.meta.region_name or "us-east-1",
    }
    if client.meta.endpoint_url.startswith("http://"):
        options["aws_allow_http"] = "true"
    if "amazonaws.com" in client.meta.endpoint_url:
        del options["aws_endpoint"]
    credentials = session.get_credentials()
    if credentials is not None:
        frozen = credentials.get_frozen_credentials()
        options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        options |= {"aws_session_token": frozen.token} if frozen.token else {}
    return options


def _parts_of(name: str, table: DeltaTable) -> list[str]:
    return [f"tables/{name}/{path}" for path in sorted(pa.table(table.get_add_actions())["path"].to_pylist())]


def _file(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def _place(key: str) -> int:
    return int(_file(key).partition("-")[0])


def _places_after(name: str, parts: Sequence[str]) -> Iterator[int | None]:
    """For each part, the place of the next one that the table holds."""
    found: list[int | None] = []
    following = None
    for part in reversed(parts):
        found.append(following)
        if part.startswith(f"tables/{name}/"):
            following = _place(part)
    return reversed(found)


def _check(name: str, rows: pa.Table, part: str) -> None:
    import polars

    for rule, condition in tables.CHECKS.get(name, {}).items():
        broken = polars.DataFrame(rows).filter(~polars.sql_expr(condition))
        if len(broken):
            first = broken.row(0, named=True)
            raise StoreError(
                f"table {name!r}: {len(broken)} row(s) of {part} break the rule {rule}: {condition}; first {first}"
            )


def _statistics(data: bytes) -> dict[str, Any]:
    """Rows, nulls and bounds by column, from Parquet's own, as Delta writes them: what readers skip files by."""
    metadata = pq.read_metadata(io.BytesIO(data))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for number, column in enumerate(metadata.schema.names if groups else ()):
        found = [group.column(number).statistics for group in groups]
        if "." in groups[0].column(number).path_in_schema or any(one is None for one in found):
            continue
        nulls[column] = sum(one.null_count or 0 for one in found)
        bounded = [one for one in found if one.has_min_max]
        if bounded and (bounds := _bounds(min(one.min for one in bounded), max(one.max for one in bounded))):
            low[column], high[column] = bounds
    return {"numRecords": metadata.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}


def _bounds(low: Any, high: Any) -> tuple[Any, Any] | None:
    if isinstance(low, str):
        return (low, high) if max(len(low), len(high)) <= _LONGEST_BOUND else None
    if isinstance(low, datetime):
        # Milliseconds, so the upper one must not be cut.
        return _stamp(low), _stamp(high + timedelta(milliseconds=1))
    if isinstance(low, float) and not (math.isfinite(low) and math.isfinite(high)):
        return None
    return (low, high) if isinstance(low, int | float) else None


def _stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"
