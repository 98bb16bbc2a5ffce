"""What a store is made of: files below a root that appear whole and once, in a local folder or under ``s3://``."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from reviewclf.errors import StoreError
from reviewclf.outages import is_away, space_hint


class File(NamedTuple):
    """A file of a store."""

    bytes: int
    written: datetime


class Objects:
    """Files below one root, by keys relative to it.

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

    def put_bytes(self, data: bytes, suffix: str) -> str:
        """Write `data` under the digest of its bytes and return its key; writing the same bytes again is free."""
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        key = f"objects/{digest[:2]}/{digest}{suffix}"
        with self.errors("written", key):
            if self._fs.exists(self.path(key)):
                self._renew(key, data)
            else:
                self.create(key, data)
        return key

    def read_bytes(self, key: str) -> bytes:
        """Content of an object. Raises :class:`StoreError` naming it when it is missing."""
        with self.errors("read", key):
            data: bytes = self._fs.cat_file(self.path(key))
            return data

    def _renew(self, key: str, data: bytes) -> None:
        """Let an object that is written once more be as young as if it were new: old ones that nothing names are removed."""
        if self._local:
            os.utime(self.path(key))
        else:
            self._fs.pipe_file(self.path(key), data)

    def holds(self, key: str) -> bool:
        """Whether there is such an object."""
        with self.errors("read", key):
            found: bool = self._fs.exists(self.path(key))
            return found

    def find(self, prefix: str) -> dict[str, datetime]:
        """Keys below `prefix` and when each was last written."""
        return {key: file.written for key, file in self.files(prefix).items()}

    def sizes(self, prefix: str) -> dict[str, int]:
        """Keys below `prefix` and their bytes."""
        return {key: file.bytes for key, file in self.files(prefix).items()}

    def files(self, prefix: str = "") -> dict[str, File]:
        """Keys below `prefix` and what is known of each; also what killed writers have left, whose names begin with a dot."""
        with self.errors("read", prefix):
            try:
                found = self._fs.find(self.path(prefix).rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        return {
            str(path).removeprefix(f"{self._root}/"): File(int(info["size"]), _written_at(info))
            for path, info in sorted(found.items())
        }

    def written(self, key: str) -> datetime | None:
        """When an object was last written; None where it is gone."""
        with self.errors("read", key):
            try:
                return _written_at(self._fs.info(self.path(key)))
            except FileNotFoundError:
                return None

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Contents of many small objects; those that went in the meantime are left out."""
        with self.errors("read", f"{len(keys)} objects"):
            found = self._fs.cat([self.path(key) for key in keys], on_error="return") if keys else {}
            for error in found.values():
                if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                    raise error
        there = {path: data for path, data in found.items() if not isinstance(data, Exception)}
        return {str(path).removeprefix(f"{self._root}/"): bytes(data) for path, data in there.items()}

    def overwrite(self, key: str, data: bytes) -> None:
        """Put other content in the place of an object's, in one step."""
        with self.errors("written", key):
            if self._local:
                temporary = Path(self.path(key)).with_name(f".new-{os.getpid()}-{Path(key).name}")
                temporary.write_bytes(data)
                temporary.replace(self.path(key))
            else:
                self._fs.pipe_file(self.path(key), data)

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self.errors("removed", key), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.path(key))

    def create(self, key: str, data: bytes) -> bool:
        """Create `key` with `data` in one step; False, and nothing changed, when it exists already."""
        if self._local:
            return _create_local(Path(self.path(key)), data)
        try:
            self._fs.pipe_file(self.path(key), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _is_taken(error):
                return False
            raise
        return True

    def place(self, source: str, target: str) -> None:
        """Let the content of `source` stand at `target` too; both are never changed."""
        with self.errors("written", target):
            if self._local:
                _link(Path(self.path(source)), Path(self.path(target)))
                os.utime(self.path(target))
            else:
                self._fs.cp_file(self.path(source), self.path(target))

    def path(self, key: str) -> str:
        """Where `key` lies, for fsspec."""
        return f"{self._root}/{key}"

    def address(self, key: str) -> str:
        """Where `key` lies, for libraries that open files themselves."""
        return self.path(key) if self._local else f"s3://{self.path(key)}"

    @contextlib.contextmanager
    def errors(self, verb: str, key: str) -> Iterator[None]:
        """Errors of the block as :class:`StoreError`, which name `key`."""
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

    # -- journals: lines that are safe as soon as they are written ------------------------------------------------------

    def append_lines(self, key: str, lines: Sequence[str], part: int) -> None:
        """Add lines to the journal `key`: in a folder one file that grows, under ``s3://`` an object a call."""
        data = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        with self.errors("written", key):
            if self._local:
                path = Path(self.path(key))
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
                self._fs.pipe_file(f"{self.path(key)}.{part:08d}", data)

    def read_lines(self, key: str) -> list[str]:
        """Lines of a journal that hold anything; the last one may be without its end. Bytes that are no UTF-8 are escaped.

        Nothing but a line feed ends a line: texts hold whatever else Unicode takes for an end.
        """
        return [line.decode(errors="surrogateescape") for line in self.read_bytes(key).split(b"\n") if line.strip()]


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


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            target.hardlink_to(source)
        except (PermissionError, NotImplementedError):  # a file system without hard links
            temporary = target.with_name(f".new-{os.getpid()}-{target.name}")
            shutil.copyfile(source, temporary)
            temporary.replace(target)
