"""Write a bucket as a tar archive to standard output, or fill an empty bucket from one on standard input.

    python bucket_archive.py dump BUCKET > bucket.tar
    python bucket_archive.py load BUCKET < bucket.tar

Address and keys come from the standard AWS variables. Nothing is kept on this machine's disk, and an object at most in
parts in memory. A bucket may be written to meanwhile: what names other objects is read first and the rest is listed only
then, so that everything named in the archive is in it.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

# The store's snapshots, manifests and the logs of its tables; an object is complete before one of them names it. Snapshots name
# versions in those logs, and are listed before them. `log`: the snapshots of version 0.1.0.
NAMES_OTHERS = ("snapshots", "stages", "_delta_log", "log")


def names_others(key: str) -> bool:
    """Whether an object may name others of its bucket."""
    return key.endswith(".json") and any(part in NAMES_OTHERS for part in key.split("/")[:-1])


def keys_of(client: Any, bucket: str) -> Iterator[str]:
    """Keys of all objects; those that stand for folders are left out."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield str(entry["Key"])


def dump(client: Any, bucket: str, target: BinaryIO) -> tuple[int, int]:
    """Write the archive; objects and bytes in it."""
    done: set[str] = set()
    total = 0
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for naming in (True, False):
            for key in keys_of(client, bucket):
                # Of what names others, that which came after the first pass may name objects that this one has passed by.
                if key in done or names_others(key) != naming:
                    continue
                try:
                    answer = client.get_object(Bucket=bucket, Key=key)
                except client.exceptions.NoSuchKey:
                    continue  # deleted since it was listed
                entry = tarfile.TarInfo(key)
                entry.size = answer["ContentLength"]
                entry.mtime = int(answer["LastModified"].timestamp())
                archive.addfile(entry, answer["Body"])
                done.add(key)
                total += entry.size
    return len(done), total


class _Forward:
    """A file that can only be read on: one in a stream says that it could go back as well, which it cannot."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return bytes(self._file.read(size))


def load(client: Any, bucket: str, source: BinaryIO) -> tuple[int, int]:
    """Fill the bucket, which is made when missing; objects and bytes.

    Raises
    ------
    SystemExit
        When the bucket holds something: an old state mixed with a newer one would be neither.
    """
    if bucket not in {entry["Name"] for entry in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=bucket)
    if (first := next(keys_of(client, bucket), None)) is not None:
        raise SystemExit(f"bucket {bucket} is not empty (it holds {first}); empty it, or restore into another one")
    count = total = 0
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for entry in archive:
            client.upload_fileobj(_Forward(archive.extractfile(entry)), bucket, entry.name)
            count += 1
            total += entry.size
    return count, total


def main(arguments: list[str]) -> None:
    """Run the command."""
    import boto3

    if len(arguments) != 2 or arguments[0] not in ("dump", "load"):
        raise SystemExit(__doc__)
    command, bucket = arguments
    client = boto3.client("s3")
    if command == "dump":
        count, total = dump(client, bucket, sys.stdout.buffer)
    else:
        count, total = load(client, bucket, sys.stdin.buffer)
    print(f"bucket {bucket}: {count} objects, {total} bytes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
