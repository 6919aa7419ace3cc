"""What a terminal shows when something goes wrong outside of our hands."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from converters.errors import YopoError
from converters.runtime.plan import PlanError
from yopo_cli.ui.failures import explanation
from yopo_cli.ui.options import parse_grid
from yopo_cli.ui.terminal import printable

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (YopoError("No.", "Do."), "No."),
        (PlanError("it has no schema"), "The plan cannot be used: it has no schema."),
        (MemoryError(), "There is not enough memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "There is not enough memory."),
        (torch.OutOfMemoryError("CUDA out of memory."), "The device ran out of memory."),
        (OSError(errno.ENOSPC, "No space left on device"), "The output: No space left on device."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "aaa: File name too long."),
        (UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range"), "A text cannot be read or written in its encoding"),
    ],
)
def test_what_is_not_our_mistake_is_told(error: Exception, sentence: str) -> None:
    found = explanation(error)
    assert found is not None
    assert found[0].startswith(sentence)
    assert found[1]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("y"), OSError("no number")])
def test_what_is_our_mistake_is_shown(error: Exception) -> None:
    assert explanation(error) is None


@pytest.mark.parametrize("text", ["24", "0x1", "-1x2", "1x2x3x4", "٣x٣", "9" * 5000 + "x1", "999999999x999999999", "1x1x1e9"])
def test_grids_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_grid(text)


def test_the_allocator_of_a_cpu() -> None:
    """Its words are looked for: this is where they come from."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert explanation(raised.value) is not None


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31mb\nc\x9b\u202ed\udcff") == r"a\x1b[31mb\nc\x9b\u202ed\udcff"
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert printable("Größe 图 👩‍🔬") == "Größe 图 👩‍🔬"


def yopo(*words: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    given = {"capture_output": True, "env": environment, "cwd": REPOSITORY} | options
    return subprocess.run([sys.executable, "-m", "yopo_cli", *words], check=False, timeout=120, **given)  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_stdout_is_full() -> None:
    with Path("/dev/full").open("w") as full:
        done = yopo("models", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: The output: No space left on device.")
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_stdout_is_not_utf8() -> None:
    done = yopo("inspect", "größe", env=dict(os.environ) | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"gr\\xf6" in done.stderr


def test_a_path_with_control_characters(tmp_path: Path) -> None:
    done = yopo("inspect", str(tmp_path / "a\x1b[2Jb"))
    assert b"\x1b[2J" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_folder_we_are_in_was_removed(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    words = [sys.executable, "-c", "import os, sys; os.rmdir(os.getcwd()); from yopo_cli.app import main; sys.argv[1:] = "
             "['convert', 'demo', '--budget', '1']; main()"]  # fmt: skip
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=tmp_path / "gone", env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"Error: " in done.stderr
