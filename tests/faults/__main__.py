"""A campaign of faults: `python -m faults [--seed N] [--share S] [AREA ...]`, from a clone's root with `tests` on the path.

The same seed gives the same attacks. It prints, by area, what was tried and what went wrong, and exits with 1 unless nothing did.
"""

import argparse
import gc
import os
import sys
import time
from multiprocessing import get_context
from threading import RLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from . import checkpoints, disks, hub, inputs, kills, plans
from .cases import KINDS, Tally

AREAS = {
    "kills": (kills.attack, 200),
    "checkpoints": (checkpoints.attack, 500),
    "plans": (plans.attack, 300),
    "inputs": (inputs.attack, 200),
    "disks": (disks.attack, 60),
    "hub": (hub.attack, 30),
}
"""How each is attacked, and how often; the long ones first."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which attacks are drawn")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of attacks")
    parser.add_argument("--jobs", type=int, default=2, help="areas at a time")
    parser.add_argument("areas", nargs="*", choices=[*AREAS, []], help="only these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # its usual one is shared between processes, and stays locked when its holder is killed
    asked = [(name, options.seed, options.share) for name in options.areas or AREAS]
    gc.freeze()
    with get_context("fork").Pool(options.jobs) as pool:
        return _report(pool.map(_attacked, asked, chunksize=1))


def _attacked(asked: tuple[str, int, float]) -> Tally:
    name, seed, share = asked
    attack, cases = AREAS[name]
    tally, began = Tally(name), time.monotonic()
    attack(tally, max(1, round(cases * share)), seed)
    print(f"{name}: {tally.counts['tried']} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return tally


def _report(tallies: list[Tally]) -> int:
    table = Table(box=None, pad_edge=False)
    for name in ("area", *KINDS):
        table.add_column(name, justify="left" if name == "area" else "right")
    for tally in tallies:
        table.add_row(tally.area, *(str(tally.counts[kind]) for kind in KINDS))
    Console(width=100).print(table)
    for example in (example for tally in tallies for example in tally.examples):
        print(example, file=sys.stderr)
    return int(any(tally.counts[kind] for tally in tallies for kind in KINDS[1:]))


if __name__ == "__main__":
    sys.exit(main())
