"""Models in processes of their own: the same answers, and no end of one that takes the server with it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from reviewclf.errors import RegistryError, ServingError
from reviewclf.serving import workers
from reviewclf.serving.served import PROBES, try_out
from reviewclf.serving.workers import ProcessClassifier, WorkerLostError
from reviewclf.training.model import load_model
from tests.small_models import REVIEWS, answers_of, save_small

TEXTS = [*REVIEWS, *PROBES, "половина \ud83d знака", "платье " * 1500, *(f"кружка номер {number}" for number in range(500))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def two(folder: Path) -> Iterator[ProcessClassifier]:
    classifier = ProcessClassifier(folder, 2)
    yield classifier
    workers._end(classifier._workers)


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_answers_are_those_of_the_model_itself(two: ProcessClassifier, folder: Path) -> None:
    here = load_model(folder)
    assert two.classes == here.classes
    assert dict(two.abstain) == dict(here.abstain)
    assert two.chosen == here.chosen
    for texts in (TEXTS, TEXTS[:1], []):
        assert np.array_equal(two.predict_proba(texts), here.predict_proba(texts))
    try_out(two, batch=16)


def test_a_saved_copy_answers_the_same(two: ProcessClassifier, tmp_path: Path) -> None:
    two.save(tmp_path / "copy")
    assert np.array_equal(load_model(tmp_path / "copy").predict_proba(REVIEWS), two.predict_proba(REVIEWS))


def test_two_calls_are_answered_by_two_processes(two: ProcessClassifier) -> None:
    assert len(set(two.pids)) == 2
    assert os.getpid() not in two.pids
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: two.answers(two.predict_proba(REVIEWS)), range(200)))
    assert found == [answers_of(0)] * 200


def test_killed_processes_are_replaced_and_the_calls_are_answered(
    two: ProcessClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    before = two.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert [two.answers(two.predict_proba(REVIEWS)) for _ in range(4)] == [answers_of(0)] * 4
    assert not set(before) & set(two.pids)
    assert caplog.text.count("ended by signal SIGKILL while it answered") == 2


def test_a_process_killed_in_the_middle_of_an_answer(two: ProcessClassifier) -> None:
    before = set(two.pids)
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.3):
            for pid in before:
                if _lives(pid):
                    os.kill(pid, signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    found = 0
    end = time.monotonic() + 30
    while set(two.pids) == before and time.monotonic() < end:
        assert len(two.predict_proba(TEXTS)) == len(TEXTS)
        found += 1
    stop.set()
    killer.join()
    assert found
    assert set(two.pids) != before


def test_what_the_model_raises_is_told_and_it_goes_on(two: ProcessClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    before = two.pids
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: "17")  # what no model can answer
        for _ in range(2):
            with pytest.raises(ServingError, match=r"^TypeError: ") as caught:
                two.predict_proba(REVIEWS)
            assert not isinstance(caught.value, WorkerLostError)
    assert [two.answers(two.predict_proba(REVIEWS)) for _ in range(2)] == [answers_of(0)] * 2
    assert two.pids == before


def test_what_cannot_be_loaded_is_refused_in_the_words_of_the_loader(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"model\.json: cannot be read"):
        ProcessClassifier(tmp_path, 2)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "model.skops"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(RegistryError, match=r"model\.skops: is damaged"):
        ProcessClassifier(tmp_path, 2)


def test_a_process_that_ends_while_it_loads_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MODULE", "this")
    with pytest.raises(RegistryError, match="ended with code 0 while it was loaded"):
        ProcessClassifier(folder, 1)


def test_a_process_that_hangs_while_it_loads_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(100)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(workers, "_MODULE", "hangs")
    monkeypatch.setattr(workers, "_START_SECONDS", 0.5)
    monkeypatch.setattr(workers, "_END_SECONDS", 0.5)
    with pytest.raises(RegistryError, match="not loaded within"):
        ProcessClassifier(folder, 1)
    assert _until(lambda: not any(map(_hangs, psutil.Process().children())))


def _hangs(process: psutil.Process) -> bool:
    try:
        return "hangs" in process.cmdline()
    except psutil.NoSuchProcess:  # ended, or ended and not yet seen off
        return False


def test_they_end_with_the_model(folder: Path) -> None:
    classifier = ProcessClassifier(folder, 2)
    pids = classifier.pids
    assert all(map(_lives, pids))
    del classifier
    gc.collect()
    assert _until(lambda: not any(map(_lives, pids)))


def test_they_end_with_a_killed_server(folder: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from reviewclf.serving.workers import ProcessClassifier\n"
        "found = ProcessClassifier(Path(sys.argv[1]), 2); print(*found.pids, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        server.kill()
    assert _until(lambda: not any(map(_lives, pids)))


def test_signals_to_the_whole_group_are_for_the_server(two: ProcessClassifier) -> None:
    before = two.pids
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert [two.answers(two.predict_proba(REVIEWS)) for _ in range(4)] == [answers_of(0)] * 4
    assert two.pids == before


def test_they_know_no_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REVIEWCLF_SERVING__API_KEYS", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "geheim")
    classifier = ProcessClassifier(folder, 1)
    (pid,) = classifier.pids
    assert "geheim" not in psutil.Process(pid).environ().values()
