"""Time and memory of converting a checkpoint with a plan, beside copying its folder, in alternating pairs.

    python benchmarks/convert_time.py /tmp/llava-7b-random --scratch /tmp --pairs 3

Both write to the same disk and end when it has everything; before each, the checkpoint's pages are dropped from memory. Peak memory
is the converting process's own: anonymous pages (without mapped file pages), sampled; and everything, as the kernel counts it.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.02
OUTPUT = "convert-time-output"


def main() -> None:
    arguments = _parse()
    if arguments.convert_to:
        convert_once(arguments.checkpoint, arguments.convert_to)
        return
    pairs = [measure_pair(arguments.checkpoint, arguments.scratch, arguments.warm) for _ in range(arguments.pairs)]
    if not arguments.keep:
        shutil.rmtree(arguments.scratch / OUTPUT)
    total = sum(file.stat().st_size for file in arguments.checkpoint.iterdir())
    for pair in pairs:
        print(json.dumps(pair), file=sys.stderr)
    medians = {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]}
    print(json.dumps({"checkpoint_bytes": total, "pairs": len(pairs), "warm": arguments.warm, **medians}))


def measure_pair(checkpoint: Path, scratch: Path, warm: bool) -> dict[str, float]:
    """Seconds of one copy and one conversion, and the latter's memory in bytes."""
    copy, output = scratch / "convert-time-copy", scratch / OUTPUT
    for folder in (copy, output):
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    prepare(checkpoint, warm)
    start, before = time.perf_counter(), children_cpu_seconds()
    subprocess.run(["cp", "-r", checkpoint, copy], check=True)
    copied, copy_cpu = time.perf_counter() - start, children_cpu_seconds()
    os.sync()
    synced = time.perf_counter() - start
    shutil.rmtree(copy)
    os.sync()
    prepare(checkpoint, warm)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, str(checkpoint), "--convert-to", str(output)])
    anonymous, everything = watch(process)
    converted, convert_cpu = time.perf_counter() - start, children_cpu_seconds()
    return {
        "copy_seconds": round(copied, 1),
        "copy_and_sync_seconds": round(synced, 1),
        "convert_seconds": round(converted, 1),
        "ratio_to_copy": round(converted / copied, 3),
        "ratio_to_copy_and_sync": round(converted / synced, 3),
        "copy_cpu_seconds": round(copy_cpu - before, 1),
        "convert_cpu_seconds": round(convert_cpu - copy_cpu, 1),
        "peak_anonymous_bytes": anonymous,
        "peak_resident_bytes": everything,
    }


def children_cpu_seconds() -> float:
    """User and system time of the processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare(checkpoint: Path, warm: bool) -> None:
    """Read the checkpoint into the page cache, or drop it from there."""
    for file in checkpoint.iterdir():
        with file.open("rb") as stream:
            if warm:
                while stream.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watch(process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """Peak of anonymous and of all resident memory until the process ends."""
    anonymous = everything = 0
    while process.poll() is None:
        text = Path(f"/proc/{process.pid}/status").read_text()
        facts = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.endswith("kB")}
        anonymous = max(anonymous, 1024 * int(facts.get("RssAnon", 0)))
        everything = max(everything, 1024 * int(facts.get("VmHWM", 0)))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"converting failed with {process.returncode}")
    return anonymous, everything


def convert_once(checkpoint: Path, output: Path) -> None:
    from converters.checkpoint.convert import Provenance, convert
    from converters.checkpoint.reader import open_checkpoint
    from converters.checkpoint.source import resolve

    opened = open_checkpoint(checkpoint)
    convert(opened, example_plan(opened), output, Provenance(resolve(str(checkpoint)), " ".join(sys.argv)))


def example_plan(opened: Any) -> Any:
    """Everything frozen and read by turns of two; in every fourth layer a few heads and neurons at random places."""
    from converters.runtime.plan import LayerPlan, Plan

    sizes, chance = opened.sizes, random.Random(0)
    heads, neurons = range(sizes.num_attention_heads), range(sizes.intermediate_size)
    frozen = LayerPlan(tuple(heads), (), (), read_stride=2)
    layers = [
        frozen
        if index % 4
        else LayerPlan(tuple(heads), tuple(sorted(chance.sample(heads, 2))), tuple(sorted(chance.sample(neurons, 200))), None, 2)
        for index in range(sizes.num_hidden_layers)
    ]
    return Plan(sizes, tuple(layers), opened.grids)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="with the checkpoint in the page cache, as far as it fits")
    parser.add_argument("--keep", action="store_true", help="leave the last converted folder in the scratch folder")
    parser.add_argument("--convert-to", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
