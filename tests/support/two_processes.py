"""What test_heal_processes.py runs, alone and as two processes: `python two_processes.py FOLDER CONVERTED`."""

import sys
from pathlib import Path

import torch

from converters.planner import plan
from converters.planning.search.search import Effort
from converters.processes import rank
from yopo_cli.app import app

torch.set_num_threads(1)
folder, converted = map(Path, sys.argv[1:])


def run(*arguments: object) -> None:
    assert not app(list(map(str, arguments)), standalone_mode=False)


run("convert", "demo", "--budget", 0.5, "--recipe", "interlaced", "--samples", 9, "--statistics", folder / "statistics", "--dry-run")
planned = ("--samples", 18, "--statistics", folder / "planned")
run("plan", "demo", "--budgets", "0.3", "--effort", 5, *planned, "--output", folder / "frontier.json")
measuring = {"effort": Effort(4.0, few=16), "statistics": folder / "planned", "state": folder / "search.json"}
measured = plan("demo", "demo", [0.4], count=18, **measuring)
if rank() == 0:
    measured.save(folder / "measured.json")
run("eval", converted, "--samples", 10, "--batch-size", 4, "--max-new-tokens", 4, "--json")
run("convert", "demo", "--budget", 0.3, "--frontier", folder / "frontier.json", "--samples", 18, "-o", folder / "pruned")
run(
    "heal", converted, "--data", "demo", "--samples", 14, "--batch-size", 4, "--micro-batch", 1, "--steps", 12, "-o", folder / "healed"
)  # fmt: skip
