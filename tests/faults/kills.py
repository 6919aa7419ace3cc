"""Signals at random moments: the target is absent, the old one or the new one; what was interrupted goes on to the same result."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import torch
from support.checkpoints import listing
from support.conversions import load
from support.healed import RECORD, answered, pruned_llava, trained
from support.random_plans import random_plan
from support.tiny import tiny_inputs
from support.tiny_search import ANSWER_TOKENS, BUDGETS, EFFORT, subject

from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.healing.written import write_healed
from converters.loading import demo_folder
from converters.planning.search.search import search
from converters.runtime.plan import Grid, to_json

from .cases import Tally, hidden, run, start, wait, yopo

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
POLITE = (0, 130, -signal.SIGTERM, -signal.SIGINT)
SECONDS = 240.0  # of a run on a busy machine


@dataclass(frozen=True)
class Target:
    """What is attacked: work in a folder, the name of what it writes there, and whether it replaces what is there."""

    name: str
    work: Callable[[Path], Callable[[], object]]
    output: str
    share: float
    replaces: bool = False


def attack(tally: Tally, cases: int, number: int) -> None:
    with TemporaryDirectory() as place:
        random = Random(number)
        for target in _targets(Path(place)):
            folder = Path(place) / target.name
            folder.mkdir()
            _kill(tally, target, folder, max(2, round(cases * target.share)), random)


def _targets(place: Path) -> tuple[Target, ...]:
    plan = place / "plan.json"
    plan.write_text(_json(to_json(random_plan(open_checkpoint(demo_folder()).sizes, 0, (Grid(4, 4),)))))
    pruned = pruned_llava(place)
    model = load(pruned)
    batches = [tiny_inputs(model.config, (3, 5), (1, 2), (2, 7), (4, 4), seed=seed) for seed in range(2)]
    found = answered(model, *batches)
    learned = [*found, *found[:4]]

    def converted(*more: str) -> Callable[[Path], Callable[[], object]]:
        return lambda folder: yopo("convert", "demo", "--plan", plan, "-o", folder / "out", *more)

    def planned(folder: Path) -> Callable[[], object]:
        def work() -> None:
            tiny, _, given, statistics = subject()
            state = folder / "out.search"
            search(tiny, given, statistics, BUDGETS, max_answer_tokens=ANSWER_TOKENS, effort=EFFORT, state=state).save(folder / "out")
            state.unlink()

        return _polite(work)

    def healed(folder: Path) -> Callable[[], object]:
        def work() -> None:
            tuned, _ = trained(pruned, learned, folder / "out.healing")
            write_healed(open_converted(pruned), tuned.tensors(), RECORD, folder / "out", force=True)

        return _polite(work)

    return (
        Target("convert", converted(), "out", 0.4),
        Target("replace", converted("--force"), "out", 0.25, True),
        Target("export", lambda folder: yopo("export", pruned, "-o", folder / "out", "--no-parity"), "out", 0.15),
        Target("plan", planned, "out", 0.1),
        Target("heal", healed, "out", 0.1),
    )


def _kill(tally: Tally, target: Target, folder: Path, cases: int, random: Random) -> None:
    """Kill it so many times; in between, and in the end, let it finish."""
    began = time.monotonic()
    first = run(target.work(folder), folder, SECONDS)
    seconds = time.monotonic() - began
    if first.status != 0:
        tally.add("wrong", f"{target.name}: {first.stderr.strip()[-300:]}")
        return
    expected = _written(folder / target.output)
    known: set[str] = set()  # what SIGKILL left: the next run that writes removes it
    for _ in range(cases):
        if not target.replaces:
            _remove(folder / target.output)
        number, moment = random.choice(SIGNALS), random.uniform(0, 1.1) * seconds
        what = f"{target.name}: {number.name} after {moment:.2f} of {seconds:.2f} s"
        child = start(target.work(folder), folder)
        time.sleep(moment)
        os.kill(child, number)
        ended = wait(child, folder, SECONDS)
        tally.counts["tried"] += 1
        if ended.late:
            tally.add("hangs", what)
        elif number != signal.SIGKILL and (ended.status not in POLITE or "Traceback" in ended.stderr):
            tally.add("tracebacks", f"{what}: {ended.status} {ended.stderr.strip()[-300:]}")
        if _written(folder / target.output) not in (({}, expected) if not target.replaces else (expected,)):
            tally.add("wrong", f"{what}: the target is neither absent nor whole")
        left = set(hidden(folder)) - known
        known |= left
        if number != signal.SIGKILL and left:
            tally.add("leftovers", f"{what}: {left}")
    if not target.replaces:
        _remove(folder / target.output)
    last = run(target.work(folder), folder, SECONDS)
    if last.status != 0 or _written(folder / target.output) != expected:
        tally.add("wrong", f"{target.name}: after all kills: status {last.status}, {last.stderr.strip()[-300:]}")
    if hidden(folder):
        tally.add("leftovers", f"{target.name}: after all kills: {hidden(folder)}")


def _polite(work: Callable[[], None]) -> Callable[[], object]:
    """Work that is not a command, told like one."""

    def polite() -> None:
        torch.set_num_threads(1)
        try:
            work()
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return polite


def _written(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    files = listing(path) if path.exists() else {}
    timed = ("onnx.json", "SHA256SUMS") if "onnx.json" in files else ()  # an export tells how long it took
    return {name: data for name, data in files.items() if name not in timed}


def _remove(path: Path) -> None:
    if path.is_dir():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _json(data: Any) -> str:
    import json

    return json.dumps(data)
