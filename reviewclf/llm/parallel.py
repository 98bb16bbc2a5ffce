"""Several requests at a time, no more in flight than wanted, and no answer lost that was paid for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def ask_many(
    ask: Callable[[Request], Answer],
    requests: Iterable[Request],
    *,
    concurrency: int,
    may_ask: Callable[[int], bool],
    given_up: threading.Event,
) -> Iterator[Answer]:
    """Answers as they come back.

    Parameters
    ----------
    ask : callable
        Asks once; runs in threads.
    requests : iterable
        Taken one by one, each when it is about to be sent.
    concurrency : int
        Requests in flight at most.
    may_ask : callable
        Told how many are in flight, says whether one more may be sent. Where it says no with none in flight, the asking ends.
    given_up : Event
        Set when a request has failed for good: the others need not wait for the server any longer.

    Raises
    ------
    Exception
        What the first failed request raised, after the answers of all that were in flight with it.
    """
    waiting = iter(requests)
    failure: BaseException | None = None
    flying: set[Future[Answer]] = set()
    given_up.clear()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="llm") as pool:
        try:
            while True:
                while failure is None and len(flying) < concurrency and may_ask(len(flying)):
                    try:
                        request = next(waiting)
                    except StopIteration:
                        break
                    flying.add(pool.submit(ask, request))
                if not flying:
                    break
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    if error := future.exception():
                        failure = failure or error
                        given_up.set()
                    else:
                        yield future.result()
        finally:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
