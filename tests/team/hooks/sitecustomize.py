"""Loaded by every Python process of the platform under test: lets a test stop a task at an exact point, nothing else.

A point is armed by a file ``$REVIEWCLF_TEST_POINTS/<point>``. The first process that comes by renames it to
``<point>.<its id>`` and waits there until it is killed or the file is gone. The product knows nothing of this.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path

_FOLDER = os.environ.get("REVIEWCLF_TEST_POINTS", "")
_LONGEST_SECONDS = 300


def _pass_by(point):
    """Wait here if the point is armed."""
    armed = Path(_FOLDER) / point
    try:
        held = armed.rename(f"{armed}.{os.getpid()}")
    except OSError:
        return
    deadline = time.monotonic() + _LONGEST_SECONDS
    while held.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _storage(module):
    """Every stage, when its work is done and its manifest is not written; every commit, before the snapshot is written."""
    store = module.Store
    run_stage, commit = store.run_stage, store.commit

    def watched_run_stage(self, stage, version, inputs, work):
        def watched_work():
            _pass_by(f"begin-{stage}")
            result = work()
            _pass_by(f"stage-{stage}")
            return result

        return run_stage(self, stage, version, inputs, watched_work)

    def watched_commit(self, base, *, key, **tables):
        _pass_by(f"commit-{key.partition(':')[0]}")
        return commit(self, base, key=key, **tables)

    store.run_stage, store.commit = watched_run_stage, watched_commit


def _client(module):
    """Every move of an alias, before it and after it."""
    client = module.MlflowClient
    set_alias = client.set_registered_model_alias

    def watched_set_alias(self, name, alias, version):
        _pass_by(f"before-{alias}")
        set_alias(self, name, alias, version)
        _pass_by(f"after-{alias}")

    client.set_registered_model_alias = watched_set_alias


class _Watcher(importlib.abc.MetaPathFinder):
    def __init__(self, watched):
        self._watched = dict(watched)

    def find_spec(self, name, path=None, target=None):
        change = self._watched.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change
        return spec


if _FOLDER:
    sys.meta_path.insert(0, _Watcher({"reviewclf.store": _storage, "mlflow.tracking.client": _client}))
