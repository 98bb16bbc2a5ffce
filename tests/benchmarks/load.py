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


async def _client(port: int, requests: Iterator[bytes], until: float, latencies: list[float], failures: dict[str, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while perf_counter() < until:
        started = perf_counter()
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        status = head[9:12].decode()
        if status == "200":
            latencies.append((perf_counter() - started) * 1000)
        else:
            failures[status] = failures.get(status, 0) + 1
    writer.close()


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
    await asyncio.gather(*(_client(port, requests, started + seconds, latencies, failures) for _ in range(clients)))
    taken = perf_counter() - started
    return {"requests": len(latencies), "seconds": taken, "failures": failures, "latencies": latencies}


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    json.dump(asyncio.run(_run(**wanted)), sys.stdout)
