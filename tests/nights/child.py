"""A night in a process of its own that is killed, as by `kill -9` or a lack of memory, at a point that the test chose."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

_SECONDS = 300.0


def killed_night(variables: Mapping[str, str], steps: Sequence[str], point: str) -> int:
    """Live a night until `point`; the process's exit code, which is -9 where it came by.

    Parameters
    ----------
    point : str
        ``stage-NAME``: the stage's work is done and its manifest is not written; ``commit-NAME``: a commit is about to be
        made.
    """
    # Clean processes without threads that have the heavy imports behind them already.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reviewclf.night", "reviewclf.registry.tracking", "reviewclf.data.quality"])
    process = context.Process(target=_live, args=(dict(variables), list(steps), point))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the night that was to be killed at {point} hangs")
    return process.exitcode


def _live(variables: dict[str, str], steps: list[str], point: str) -> None:
    from rich.console import Console

    from reviewclf.night import run_night
    from reviewclf.settings import load_settings
    from reviewclf.store import Store

    os.environ.update(variables)
    run_stage, commit = Store.run_stage, Store.commit

    def pass_by(reached: str) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_run_stage(self: Store, stage: str, version: int, inputs: Any, work: Callable[[], Any]) -> Any:
        def watched_work() -> Any:
            result = work()
            pass_by(f"stage-{stage}")
            return result

        return run_stage(self, stage, version, inputs, watched_work)

    def watched_commit(self: Store, base: Any, *, key: str, **named: Any) -> Any:
        pass_by(f"commit-{key.partition(':')[0]}")
        return commit(self, base, key=key, **named)

    Store.run_stage = watched_run_stage  # type: ignore[assignment]
    Store.commit = watched_commit  # type: ignore[assignment]
    report = run_night(load_settings(_env_file=None), who="killed night", console=Console(file=StringIO()), steps=steps)
    os._exit(int(report.failed))
