"""The campaign itself, with a few attacks of each kind that needs no minutes; `make faults` is all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_few_attacks() -> None:
    pytest.importorskip("hypothesis")
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}
    command = [sys.executable, "-m", "faults", "--share", "0.02", "--seed", "7", "checkpoints", "inputs", "plans", "disks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["area", "tried", "tracebacks", "wrong", "leftovers", "hangs"]
