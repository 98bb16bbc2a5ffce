"""A training task that grows too big ends with an error that names the setting; others are left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reviewclf.training.limits import memory_limit
from tests.conftest import ROOT

_PROGRAM = """
import resource, sys
import numpy, torch
from reviewclf.errors import TrainingError
from reviewclf.training.limits import memory_limit
before = resource.getrlimit(resource.RLIMIT_DATA)
try:
    with memory_limit(float(sys.argv[2])):
        {"numpy": lambda: numpy.ones(2**28), "torch": lambda: torch.ones(2**29)}[sys.argv[1]]()
except TrainingError as error:
    print(error)
else:
    print("enough")
assert resource.getrlimit(resource.RLIMIT_DATA) == before
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("gib", "said"), [("1.5", "REVIEWCLF_TRAINING__MAX_MEMORY_GIB=1.5"), ("6", "enough")])
def test_two_gibibytes(library: str, gib: str, said: str) -> None:
    command = [sys.executable, "-c", _PROGRAM, library, gib]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stderr
    assert said in answer.stdout


def test_other_errors_and_no_limit_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_limit(64.0):
        raise RuntimeError("something else")
    with pytest.raises(MemoryError), memory_limit(None):
        raise MemoryError
