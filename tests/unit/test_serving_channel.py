"""The channel between a server and the processes beside it: whole messages in order, each with its own file."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reviewclf.serving.channel import Channel, Message


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    both = tuple(Channel(end) for end in socket.socketpair())
    yield both  # type: ignore[misc]
    for end in both:
        end.close()


def take(channel: Channel, count: int) -> list[tuple[Message, int | None]]:
    found: list[tuple[Message, int | None]] = []
    while len(found) < count:
        found.extend(channel.receive())
    return found


def test_messages_of_any_length_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    messages = [{"text": "платье\n" * length, "number": length} for length in (0, 1, 100_000, 3)]

    def send() -> None:
        for message in messages:
            here.send(message)

    sender = threading.Thread(target=send)
    sender.start()
    assert take(there, len(messages)) == [(message, None) for message in messages]
    sender.join()


def test_each_file_comes_with_its_message(ends: tuple[Channel, Channel], tmp_path: Path) -> None:
    here, there = ends
    for number in range(100):
        path = tmp_path / str(number)
        path.write_text(str(number))
        with path.open() as file:
            here.send({"number": number}, file.fileno())
        here.send({"between": number})
    for message, file in take(there, 200):
        assert (file is None) == ("between" in message)
        if file is not None:
            with os.fdopen(file) as opened:
                assert opened.read() == str(message["number"])


def test_the_end_of_the_other_side_is_seen(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.send({"last": True})
    here.close()
    assert take(there, 1) == [({"last": True}, None)]
    with pytest.raises(EOFError):
        list(there.receive())
    with pytest.raises(OSError, match="Broken pipe"):
        there.send({"to": "nobody"})


def test_who_must_not_wait_hears_that_the_other_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = Channel(ours)
    with theirs, pytest.raises(BlockingIOError):
        fill(channel)
    channel.close()


def fill(channel: Channel) -> None:
    for _ in range(100_000):
        channel.send({"do": "take"})
