"""Every published size, with random weights in the published layout: convert with a plan, count parameters, let it answer.

    python benchmarks/convert_real_size.py --scratch /tmp/real                       # all, one at a time on the disk
    python benchmarks/convert_real_size.py --scratch /tmp/real --only llava-1.5-13b
    python benchmarks/convert_real_size.py --scratch /tmp/real --only qwen2-vl-7b --answer

One JSON line a model. Peak memory is the converting process's own: anonymous pages (without mapped file pages), sampled. Of
InternVL2-26B the headers and the plan are at full size, and the first two shards are converted. `--answer` lets the converted model
answer a question about a picture in bfloat16. The disk needs room for a model twice (13B: 54 GB); nothing stays.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from convert_time import example_plan, watch

HERE = Path(__file__).parent
MEASURED = HERE.parent / "converters" / "bench" / "configs"
CONFIGS = MEASURED / "published"  # in the layouts of their repositories; the long and short RoPE factors of internvl2-4b are stand-ins
PICTURE = (448, 448)  # one tile of InternVL: thirteen take bfloat16 on two cores longer than nine minutes


@dataclass(frozen=True)
class Case:
    """A published model; `parameters` as its source counts them, to the digits that it gives."""

    config: Path
    parameters: float
    digits: int
    source: str
    shards: int | None = None


HUB = "parameter count of the repository's safetensors on the Hub"
CASES = {
    "internvl2-4b": Case(CONFIGS / "internvl2-4b.json", 4.15e9, 3, f"{HUB}, as shown"),
    "llava-1.5-7b": Case(MEASURED / "llava-1.5-7b.json", 7_063_427_072, 10, "parameters of llava-hf/llava-1.5-7b-hf as loaded"),
    "internvl2-8b": Case(CONFIGS / "internvl2-8b.json", 8_075_365_376, 10, f"{HUB}; half of the index's total_size, 16150730752"),
    "qwen2-vl-7b": Case(CONFIGS / "qwen2-vl-7b.json", 8_291_375_616, 10, f"{HUB}; half of the index's total_size, 16582751232"),
    "llava-1.5-13b": Case(MEASURED / "llava-1.5-13b.json", 13.4e9, 3, f"{HUB}, as shown"),
    "internvl2-26b": Case(CONFIGS / "internvl2-26b.json", 25_514_186_112, 11, f"{HUB} (InternVL2.5-26B, the same sizes)", 2),
}


def main() -> None:
    arguments = _parse()
    if arguments.part_to:
        convert_part(arguments.scratch, arguments.part_to, arguments.shards)
        return
    for name in arguments.only or CASES:
        print(json.dumps(measure(name, CASES[name], arguments.scratch, arguments.answer, arguments.keep)), flush=True)


def measure(name: str, case: Case, scratch: Path, answer: bool, keep: bool) -> dict[str, Any]:
    base, output = scratch / name, scratch / f"{name}-pruned"
    shutil.rmtree(base, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    part = [] if case.shards is None else ["--shards", str(case.shards)]
    run("make_random_published.py", base, "--config", case.config, *part)
    facts: dict[str, Any] = {"model": name, "checkpoint_bytes": sum(file.stat().st_size for file in base.iterdir())}
    facts |= counted(base, case)
    command = [HERE / "convert_time.py", base, "--convert-to", output]
    if case.shards is not None:
        command = [__file__, "--scratch", base, "--part-to", output, *part]
    started = time.perf_counter()
    anonymous, everything = watch(subprocess.Popen([sys.executable, *map(str, command)]))
    facts |= {
        "convert_seconds": round(time.perf_counter() - started, 1),
        "peak_anonymous_bytes": anonymous,
        "peak_resident_bytes": everything,
    }
    shutil.rmtree(base)
    facts |= checked(output, facts["parameters"]) if case.shards is None else {"shards": len(list(output.glob("*.safetensors")))}
    facts["written_bytes"] = sum(file.stat().st_size for file in output.iterdir())
    if answer and case.shards is None:
        facts |= answered(output)
    if not keep:
        shutil.rmtree(output)
    return facts


def run(script: str, *arguments: Any) -> None:
    subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=True)


def counted(base: Path, case: Case) -> dict[str, Any]:
    """Parameters by the headers, held against the published count."""
    from converters.checkpoint.reader import open_checkpoint

    parameters = sum(prod(info.shape) for info in open_checkpoint(base).tensors.values())
    if f"{parameters:.{case.digits - 1}e}" != f"{case.parameters:.{case.digits - 1}e}":
        raise SystemExit(f"{parameters} parameters, published are {case.parameters}")
    return {"parameters": parameters, "published": case.parameters, "source": case.source}


def checked(output: Path, parameters: int) -> dict[str, Any]:
    """The converted folder's tensors are the model's, as many parameters as before."""
    from converters.checkpoint.reader import open_converted

    opened = open_converted(output).open_tensors()
    if (found := sum(prod(info.shape) for info in opened.tensors.values())) != parameters:
        raise SystemExit(f"{found} parameters after converting, {parameters} before")
    return {"shards": len({info.file for info in opened.tensors.values()})}


def answered(output: Path) -> dict[str, Any]:
    """Three tokens about a picture, by the command line."""
    from PIL import Image

    picture = output.parent / "picture.png"
    Image.effect_noise(PICTURE, 80).convert("RGB").save(picture)
    words = ["ask", output, "w5 w6 w7", "--image", picture, "--max-new-tokens", "3", "--dtype", "bfloat16"]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "yopo_cli", *map(str, words)], stdout=subprocess.PIPE)
    _, everything = watch(process)
    picture.unlink()
    assert process.stdout is not None
    text = process.stdout.read().decode().strip()
    return {"answer": text, "answer_seconds": round(time.perf_counter() - started, 1), "answer_peak_resident_bytes": everything}


def convert_part(base: Path, output: Path, count: int) -> None:
    """What `convert` does, for the first shards alone; everything before a byte is written is at full size."""
    from converters.checkpoint.convert import check_plan
    from converters.checkpoint.permutation import permutations
    from converters.checkpoint.reader import open_checkpoint
    from converters.checkpoint.writer import Entry, plan_shards, write_shard

    opened = open_checkpoint(base)
    moved = permutations(opened.family, check_plan(example_plan(opened), opened.sizes))
    shards = plan_shards(Entry(name, info.dtype, info.shape) for name, info in opened.tensors.items())
    output.mkdir()
    for shard in shards[:count]:
        write_shard(output, shard, lambda name: moved[name].apply(opened.read(name)) if name in moved else opened.read(name))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, help="these models")
    parser.add_argument("--answer", action="store_true", help="and let the converted model answer, for which it must fit in memory")
    parser.add_argument("--keep", action="store_true", help="leave the converted folders")
    parser.add_argument("--part-to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
