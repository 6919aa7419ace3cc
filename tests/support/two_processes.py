"""What test_heal_processes.py runs, alone and as two processes: `python two_processes.py FOLDER CONVERTED`."""

import sys
from pathlib import Path

import torch

from yopo_cli.app import app

torch.set_num_threads(1)
folder, converted = map(Path, sys.argv[1:])


def run(*arguments: object) -> None:
    assert not app(list(map(str, arguments)), standalone_mode=False)


run("convert", "demo", "--budget", 0.5, "--recipe", "interlaced", "--samples", 9, "--statistics", folder / "statistics", "--dry-run")
run("eval", converted, "--samples", 10, "--batch-size", 4, "--max-new-tokens", 4, "--json")
run(
    "heal", converted, "--data", "demo", "--samples", 14, "--batch-size", 4, "--micro-batch", 1, "--steps", 12, "-o", folder / "healed"
)  # fmt: skip
