"""Clients that ask a server on this machine one review at a time: ``python -m tests.benchmarks.load``, a process of its own.

Reads one JSON object from standard input: ``port``, ``path``, ``clients``, ``seconds`` and ``bodies`` (ready-made JSON
texts); writes one: ``requests``, ``seconds``, ``failures`` and ``latencies`` in milliseconds. Each client keeps its
connection and sends its next request when it has the answer to the last.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import cast

import uvloop


class _Client(asyncio.Protocol):
    """One connection. Callbacks, as clients share the machine with the server that they ask."""

    def __init__(self, requests: Iterator[bytes], until: float, latencies: list[float], failures: dict[str, int]) -> None:
        self._requests = requests
        self._until = until
        self._latencies = latencies
        self._failures = failures
        self._answer = b""
        self._missing = 0
        self._asked = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._answer, self._missing = b"", 0
        self._asked = perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._missing:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            start = self._answer.lower().index(b"content-length:", 0, end) + len("content-length:")
            self._missing = end + 4 + int(self._answer[start : self._answer.index(b"\r", start)])
        if len(self._answer) < self._missing:
            return
        now = perf_counter()
        if self._answer[9:12] == b"200":
            self._latencies.append((now - self._asked) * 1000)
        else:
            status = self._answer[9:12].decode()
            self._failures[status] = self._failures.get(status, 0) + 1
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or perf_counter() < self._until:
            self._failures["connection lost"] = self._failures.get("connection lost", 0) + 1
        self.ended.set_result(None)


async def _run(port: int, path: str, clients: int, seconds: float, bodies: list[str]) -> dict[str, object]:
    ready = []
    for body in bodies:
        content = body.encode("utf-8")
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        )
        head = "\r\n".join(lines) + "\r\n\r\n"
        ready.append(head.encode() + content)
    requests = itertools.cycle(ready)
    latencies: list[float] = []
    failures: dict[str, int] = {}
    started = perf_counter()
    loop = asyncio.get_running_loop()
    asking = [_Client(requests, started + seconds, latencies, failures) for _ in range(clients)]
    for client in asking:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(client.ended for client in asking))
    taken = perf_counter() - started
    return {"requests": len(latencies), "seconds": taken, "failures": failures, "latencies": latencies}


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    json.dump(uvloop.run(_run(**wanted)), sys.stdout)
