"""What a request with a picture takes of the KV cache, under plans of a random LLaVA of width 1024.

    python benchmarks/serving/memory.py FOLDER [--kv-heads 2]

Counts the blocks that the engine deals out. Prints one JSON line for each plan; exits with 1 where layers without K and V of visual tokens
take as much as others.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ttft import dense_of, made, plan_of
from words import engine

BLOCK = 32
VISUAL, TEXT = 576, 9


def depth(model: Any, layers: int) -> Any:
    """Visual tokens are frozen, and read in the first layers only."""
    from converters.runtime.plan import normalise

    plan = plan_of(model, None)
    changed = (layer if index < layers else replace(layer, read_heads=()) for index, layer in enumerate(plan.layers))
    return normalise(replace(plan, layers=tuple(changed)))


def strided(model: Any) -> Any:
    from converters.runtime.plan import normalise

    plan = plan_of(model, None)
    return normalise(replace(plan, layers=tuple(replace(layer, read_stride=2) for layer in plan.layers)))


PLANS: dict[str, Callable[[Any], Any]] = {
    "dense": dense_of,
    "frozen": lambda model: plan_of(model, None),
    "strides": strided,
    "depth-8": lambda model: depth(model, 8),
    "depth-6": lambda model: depth(model, 6),
}


def measured(folder: Path) -> dict[str, Any]:
    """Blocks and bytes that one request holds once its first token is there."""
    from PIL import Image
    from vllm import SamplingParams

    llm = engine(folder, enable_prefix_caching=False, max_model_len=1024, limit_mm_per_prompt={"image": 1}, block_size=BLOCK)
    manager = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
    config, pool = manager.kv_cache_config, manager.block_pool
    free = pool.get_num_free_blocks()
    asked = {"prompt": "USER: <image>\nw5 w6 w7 w8 ASSISTANT:", "multi_modal_data": {"image": Image.new("RGB", (336, 336), (9, 9, 9))}}
    llm.enqueue([asked], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
    while not any(request.num_output_tokens for request in manager_requests(llm)):
        llm.llm_engine.step()
    group = config.kv_cache_groups[0]
    bytes_of_block = len(group.layer_names) * group.kv_cache_spec.page_size_bytes
    held = free - pool.get_num_free_blocks()
    found = {"layers_of_groups": [len(group.layer_names) for group in config.kv_cache_groups], "head_size": group.kv_cache_spec.head_size}
    return found | {"blocks": held, "bytes": held * bytes_of_block, "bytes_a_token": round(held * bytes_of_block / (VISUAL + TEXT))}


def manager_requests(llm: Any) -> list[Any]:
    return list(llm.llm_engine.engine_core.engine_core.scheduler.requests.values())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kv-heads", type=int, default=2)
    given = parser.parse_args()
    held: dict[str, int] = {}
    for name, plan in PLANS.items():
        folder = made(given.folder, given.kv_heads, name, plan)
        with get_context("spawn").Pool(1) as pool:
            found = pool.apply(measured, (folder,))
        held[name] = found["bytes"]
        print(json.dumps({"plan": name, "kv_heads": given.kv_heads, **found}), flush=True)
    return not held["depth-6"] < held["depth-8"] < held["strides"]


if __name__ == "__main__":
    sys.exit(main())
