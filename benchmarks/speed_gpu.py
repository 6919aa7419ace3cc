"""The whole speed record of a GPU in one command: `python benchmarks/speed_gpu.py -o benchmarks/records/speed-gpu.jsonl > speed-gpu.md`.

LLaVA-1.5-7B and 13B at full size with random weights, bfloat16, batch 1 and 8, 576 to 9,216 visual tokens, budgets 1.0 to 0.04, both
sides as they are and both under torch.compile. Every setting is a process of its own (`yopo bench`), so that one that does not fit
the memory is told and the others run. The tables say where a target is missed: prefill within 1.25x of the roofline bound (7B at
batch 8, and at batch 1 from 2,304 tokens), faster than dense below budget 1, peak memory within a tenth of its prediction.

On a CPU with a tiny model, to try it out:
python benchmarks/speed_gpu.py --device cpu --models FOLDER --tokens 16 --batches 1 --budgets 1,0.5 --dtype float32 -o record.jsonl
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

BOUND, MEMORY = 1.25, 0.1


def settings(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The command lines of all runs."""
    for model, batch, tokens, compiled in product(asked.models, asked.batches, asked.tokens, (False, True)):
        budgets = [word for budget in asked.budgets for word in ("--budget", budget)]
        sizes = ["--visual-tokens", tokens, "--batch-sizes", batch, "--rounds", asked.rounds, "--steps", "0" if compiled else asked.steps]
        where = ["--device", asked.device, "--dtype", asked.dtype, "--no-tower", "--json"]
        layers = ["--layers", asked.layers] if asked.layers else []
        yield ("bench", model, "--random-weights", *layers, *budgets, *sizes, *where, *(["--compile"] if compiled else []))


def record(arguments: tuple[str, ...]) -> dict[str, Any]:
    """What `yopo bench` recorded, or why it could not."""
    done = subprocess.run([sys.executable, "-m", "yopo_cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"command": ["yopo", *arguments], "failed": reason}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"command": ["yopo", *arguments], **found}


def missed(line: dict[str, Any], run: dict[str, Any], side: dict[str, Any]) -> list[str]:
    """The targets that one side of one run misses."""
    time, reasons = side["prefill"], []
    if time["least"] and (run["batch"] > 1 or run["visual_tokens"] >= 2304) and time["seconds"] > BOUND * time["least"]:
        reasons.append("bound")
    if (side["budget"] or 1) < 1 and time["ratio"] >= 1:
        reasons.append("not faster")
    if side["peak_bytes"] and side["peak_predicted"] and abs(side["peak_bytes"] / side["peak_predicted"] - 1) > MEMORY:
        reasons.append("memory")
    if side["kv_bytes"] != side["kv_bytes_predicted"]:
        reasons.append("cache")
    return reasons if line["device"].startswith("cuda") else [reason for reason in reasons if reason == "cache"]


COLUMNS = ("side", "ms", "of dense", "FLOPs/time", "of bound", "KV GB", "of dense", "peak GB", "predicted", "missed")


def tables(lines: list[dict[str, Any]]) -> Iterator[str]:
    """One Markdown table a run."""
    for line in lines:
        yield "\n    " + " ".join(line["command"])
        if "failed" in line:
            yield f"\nDid not run: {line['failed']}"
            continue
        ceiling = line["ceiling"]
        rates = f"{ceiling['flops_per_second'] / 1e12:.1f} TFLOP/s, {ceiling['bytes_per_second'] / 1e9:.0f} GB/s"
        chosen = "; ".join(f"{what}: {next(iter(seconds))}" for what, seconds in line["chosen"].items())
        yield f"\n{line['device_name']}, {line['dtype']}, torch {line['versions']['torch']}; measured {rates}. {chosen}\n"
        yield f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
        for run in line["runs"]:
            yield from (f"| {' | '.join(_row(line, run, side))} |" for side in run["sides"])


def _row(line: dict[str, Any], run: dict[str, Any], side: dict[str, Any]) -> Iterator[str]:
    time = side["prefill"]
    yield side["name"] if side["budget"] is None else f"{side['name']} {side['budget']:g}"
    yield f"{1000 * time['seconds']:.1f}"
    yield f"{time['ratio']:.4f}"
    yield f"{side['efficiency']:.3f}"
    yield f"{time['seconds'] / time['least']:.2f}x" if time["least"] else "-"
    yield f"{side['kv_bytes'] / 1e9:.3f}"
    yield f"{side['kv_share']:.4f}"
    yield from (f"{size / 1e9:.2f}" if size else "-" for size in (side["peak_bytes"], side["peak_predicted"]))
    yield ", ".join(missed(line, run, side)) or "-"


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lists = {
        "models": "llava-1.5-7b,llava-1.5-13b",
        "batches": "1,8",
        "tokens": "576,2304,5184,9216",
        "budgets": "1,0.5,0.25,0.12,0.04",
    }
    for name, value in lists.items():
        parser.add_argument(f"--{name}", default=value.split(","), type=lambda text: text.split(","))
    for name, value in {"device": "cuda", "dtype": "bfloat16", "rounds": "10", "steps": "16", "layers": ""}.items():
        parser.add_argument(f"--{name}", default=value)
    parser.add_argument("--output", "-o", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    asked, lines = _asked(), []
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with asked.output.open("w", encoding="utf-8") as file:
        for arguments in settings(asked):
            print("yopo", *arguments, file=sys.stderr, flush=True)
            lines.append(record(arguments))
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
    print("\n".join(tables(lines)))


if __name__ == "__main__":
    main()
