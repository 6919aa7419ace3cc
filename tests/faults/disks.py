"""Disks that are full or read-only, limits on files, and two runs that write to one place."""

import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from support.checkpoints import listing, save_model
from support.random_plans import random_plan

from converters.checkpoint.manifest import changed_files, read_manifest
from converters.checkpoint.reader import open_checkpoint
from converters.runtime.plan import Grid, to_json

from .cases import Tally, hidden, run, start, wait, yopo

NOBODY = 65534


def attack(tally: Tally, cases: int, number: int) -> None:
    with TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        source, plan, random = Path(place) / "source", Path(place) / "plan.json", Random(number)
        save_model(source, layers=4)
        plan.write_text(json.dumps(to_json(random_plan(open_checkpoint(source).sizes, 0, (Grid(4, 4),)))))
        words = ("convert", source, "--plan", plan, "-o")
        size = sum(file.stat().st_size for file in source.iterdir())
        for _ in range(cases // 4):
            _limited(tally, words, random.randrange(1, size))
            _two(tally, words, random.random() < 0.5, random.uniform(0, 0.3))
            _unwritable(tally, words, random.choice((0o555, 0o444, 0o000)))
        _full(tally, words, size, cases - 3 * (cases // 4), random)


def _limited(tally: Tally, words: tuple[Any, ...], limit: int) -> None:
    """No file may be longer than that."""
    with TemporaryDirectory() as place:

        def work() -> None:
            soft = max(limit, 100)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
            yopo(*words, Path(place) / "out")()

        _refused(tally, work, Path(place), f"a limit of {limit} bytes", may_succeed=True)


def _full(tally: Tally, words: tuple[Any, ...], size: int, cases: int, random: Random) -> None:
    """A file system of a few pages, where one can be made."""
    for _ in range(cases):
        with TemporaryDirectory() as place:
            small = Path(place) / "small"
            small.mkdir()
            room = random.randrange(4096, size)
            if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", small], capture_output=True, check=False).returncode:
                return
            try:
                _refused(
                    tally, _without_check(yopo(*words, small / "out")), Path(place), f"a disk of {room} bytes", small, may_succeed=True
                )
            finally:
                subprocess.run(["umount", small], check=False)


def _without_check(work: Callable[[], None]) -> Callable[[], None]:
    """The same where the disk fills up later, by somebody else."""

    def unchecked() -> None:
        from converters.checkpoint import convert

        convert.check_space = lambda output, needed: None  # type: ignore[attr-defined]
        work()

    return unchecked


def _unwritable(tally: Tally, words: tuple[Any, ...], mode: int) -> None:
    """As a user who may not write there."""
    with TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        folder = Path(place) / "theirs"
        folder.mkdir()
        folder.chmod(mode)

        def work() -> None:
            if os.geteuid() == 0:
                os.seteuid(NOBODY)
            yopo(*words, folder / "out")()

        _refused(tally, work, Path(place), f"a folder of mode {mode:o}", folder)
        folder.chmod(0o777)


def _refused(tally: Tally, work: Callable[[], None], place: Path, what: str, folder: Path | None = None, may_succeed: bool = False) -> None:
    ended = tally.judged(run(work, place), what)
    folder = folder or place
    if ended.status == 0 and not may_succeed:
        tally.add("wrong", f"{what}: written")
    if hidden(folder) or (ended.status and (folder / "out").exists()):
        tally.add("leftovers", f"{what}: {hidden(folder)}")


def _two(tally: Tally, words: tuple[Any, ...], force: bool, delay: float) -> None:
    """Without --force one of them wins, and the other is told; with it both may, one after the other."""
    import time

    with TemporaryDirectory() as place:
        work = yopo(*words, Path(place) / "out", *(["--force"] if force else []))
        folders = [Path(place) / name for name in ("first", "second")]
        children = []
        for folder in folders:
            folder.mkdir()
            children.append(start(work, folder))
            time.sleep(delay)
        ended = [tally.judged(wait(child, folder, 60), "two runs") for child, folder in zip(children, folders, strict=True)]
        statuses = sorted(one.status for one in ended)
        if statuses != ([0, 0] if force else [0, 1]) and not (force and statuses == [0, 1]):
            tally.add("wrong", f"two runs, force {force}: {statuses} {ended[0].stderr[-200:]} {ended[1].stderr[-200:]}")
        out = Path(place) / "out"
        if not listing(out) or changed_files(out, read_manifest(out)):
            tally.add("wrong", f"two runs, force {force}: the target is not whole")
        if hidden(Path(place)):
            tally.add("leftovers", f"two runs: {hidden(Path(place))}")
