"""Which build of PyTorch a fresh set-up takes."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Stands in for Python: makes an environment that holds itself, notes what pip is asked for, and runs everything else.
STAND_IN = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "$PIP_INDEX_URL $*" >> "$NOTES" ;;
  *) exec {python} "$@" ;;
esac
"""
# In an address, and as it is.
QUOTED, PASSWORD = "p%40ss%2Fword", "p@ss/word"
Setup = Callable[..., list[str]]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Runs the set-up with stand-ins and answers what pip was asked for."""
    (tmp_path / "python").write_text(STAND_IN.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)

    def run(*, gpu: bool = False, **variables: str) -> list[str]:
        notes, tools = tmp_path / "notes", tmp_path / "tools"
        tools.mkdir()
        if gpu:
            (tools / "nvidia-smi").write_text("#!/bin/sh\n")
            (tools / "nvidia-smi").chmod(0o755)
        venv = tmp_path / "venv"
        # What was told to the make that runs the tests is nothing to this one.
        inherited = {name: value for name, value in os.environ.items() if name not in {"TORCH_INDEX", "MAKEFLAGS"}}
        path = f"{tools}:{os.environ['PATH']}"
        made = subprocess.run(
            ["make", f"PYTHON={tmp_path / 'python'}", f"VENV={venv}", venv / ".ready"],
            cwd=ROOT,
            env={**inherited, "PATH": path, "NOTES": str(notes), "no_proxy": "127.0.0.1", **variables},
            check=True,
            capture_output=True,
            text=True,
        )
        told = made.stdout + made.stderr
        assert PASSWORD not in told
        assert QUOTED not in told
        return [line for line in notes.read_text().splitlines() if "torch" in line]

    return run


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    (folder / "torch").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_pytorch_comes_from_the_index_that_is_named(setup: Setup, tmp_path: Path) -> None:
    with served(tmp_path / "index", SimpleHTTPRequestHandler) as index:
        (asked,) = setup(TORCH_INDEX=index, gpu=True)
    assert asked.startswith(f"{index} -m pip")
    assert "--no-deps torch==" in asked


class Guarded(SimpleHTTPRequestHandler):
    """Hands out files to those who say the password."""

    def do_GET(self) -> None:
        expected = base64.b64encode(f"anna:{PASSWORD}".encode()).decode()
        if self.headers["Authorization"] == f"Basic {expected}":
            super().do_GET()
        else:
            self.send_error(401)


@pytest.mark.parametrize(("password", "answers"), [(QUOTED, True), ("wrong", False)])
def test_index_that_asks_for_a_password_is_asked_with_it(setup: Setup, tmp_path: Path, password: str, answers: bool) -> None:
    with served(tmp_path / "index", Guarded) as index:
        address = index.replace("//", f"//anna:{password}@")
        asked = setup(TORCH_INDEX=address, gpu=True)
    assert [line.split()[0] for line in asked] == [address] * answers


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:9"])
def test_no_index_or_a_silent_one_leaves_the_choice_to_the_package_index(setup: Setup, address: str) -> None:
    assert setup(TORCH_INDEX=address) == []


def test_machine_with_a_gpu_takes_the_ordinary_build(setup: Setup) -> None:
    assert setup(gpu=True) == []
