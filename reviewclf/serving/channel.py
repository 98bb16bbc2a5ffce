"""Messages between a server and the processes beside it: JSON lines through a pair of sockets, some with an open file."""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

_PIECE = 1 << 16
_FILES = 64


class Channel:
    """One end of the pair.

    Parameters
    ----------
    end : socket.socket
        Of :func:`socket.socketpair`; belongs to the channel from now on. Where it does not block, :meth:`send` raises
        :class:`BlockingIOError` when the other side does not read.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._rest = b""
        self._files: deque[int] = deque()

    def fileno(self) -> int:
        """For those who wait for messages."""
        return self._socket.fileno()

    def send(self, message: Message, file: int | None = None) -> None:
        """Send a message, and the open file with this number, which stays open here as well.

        Raises
        ------
        OSError
            The other side has gone, or does not read.
        """
        line = json.dumps(message if file is None else {**message, "file": True}).encode() + b"\n"
        sent = self._socket.send(line) if file is None else socket.send_fds(self._socket, [line], [file])
        if sent < len(line):
            self._socket.sendall(line[sent:])

    def receive(self) -> Iterator[tuple[Message, int | None]]:
        """What has come: messages, each with the number of the file that came with it, which is then the receiver's.

        Raises
        ------
        EOFError
            The other side has gone.
        """
        data, files, _, _ = socket.recv_fds(self._socket, _PIECE, _FILES)
        self._files.extend(files)
        if not data:
            raise EOFError("the other side of the channel has gone")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message: Message = json.loads(line)
            yield message, self._files.popleft() if message.get("file") else None

    def close(self) -> None:
        """The other side sees the end of it."""
        self._socket.close()
