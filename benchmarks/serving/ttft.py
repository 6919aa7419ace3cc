"""Time to first token of a plan against the dense model in one engine, in turns, on a random LLaVA of width 1024.

    python benchmarks/serving/ttft.py FOLDER [--kv-heads 2] [--budget 0.12] [--rounds 6]

Without --budget the plan freezes and reads everything. Prints one JSON line: medians and their ratios.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from words import engine, served

WIDTH, LAYERS, HEADS = 1024, 12, 16


def config(kv_heads: int) -> dict[str, Any]:
    """LLaVA-1.5's own vision tower grid, 24 x 24, with a small tower, and a language model of 12 layers."""
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 64}
    text = {"hidden_size": WIDTH, "intermediate_size": 2816, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    text |= {"num_key_value_heads": kv_heads, "head_dim": 64, "vocab_size": 32064, "max_position_embeddings": 2048, "model_type": "llama"}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "image_seq_length": 576,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": text,
        "vision_config": {**vision, "image_size": 336, "patch_size": 14, "model_type": "clip_vision_model"},
    }


def dense_of(model: Any) -> Any:
    from converters.runtime.plan import dense_plan

    return dense_plan(model.checkpoint.sizes, model.checkpoint.grids)


def plan_of(model: Any, budget: float | None) -> Any:
    from converters.planning.recipes import make_plan
    from converters.planning.search.search import reading_plan

    dense = dense_of(model)
    return reading_plan(dense) if budget is None else make_plan("interlaced", None, dense.sizes, dense.grids, budget, windows=False)


def made(folder: Path, kv_heads: int, name: str, plan: Callable[[Any], Any]) -> Path:
    """The converted model, made where it is not there."""
    import torch
    from make_random_llava import write

    from converters.api import convert, load

    folder.mkdir(parents=True, exist_ok=True)
    base = folder / f"random-{kv_heads}"
    if not base.exists():
        write(base, config(kv_heads), torch.float32, 0, False)
    out = folder / f"random-{kv_heads}-{name}"
    if not out.exists():
        model = load(str(base), device="cpu", dtype="float32")
        convert(model, plan(model), out, refit=False)
    return out


def of_budget(folder: Path, kv_heads: int, budget: float | None) -> Path:
    return made(folder, kv_heads, str(budget or "frozen"), lambda model: plan_of(model, budget))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    out = of_budget(given.folder, given.kv_heads, given.budget)
    llm = engine(out, enable_prefix_caching=False, max_model_len=1024, mm_processor_cache_gb=0, limit_mm_per_prompt={"image": 1})
    print(json.dumps(measured(llm, given.rounds) | {"kv_heads": given.kv_heads, "budget": given.budget or "frozen"}), flush=True)


def measured(llm: Any, rounds: int) -> dict[str, Any]:
    """Seconds from asking to the first token, and of processors meanwhile, which others on the machine do not slow; the first round is not
    counted."""
    from PIL import Image
    from vllm import SamplingParams

    model = served(llm)
    seconds: dict[tuple[str, bool], list[float]] = {}
    for turn in range(rounds + 1):
        for obeying in (False, True):
            model.obeying = obeying
            picture = Image.new("RGB", (336, 336), (turn, 0, int(obeying)))
            asked = {"prompt": "USER: <image>\nw5 w6 w7 w8 ASSISTANT:", "multi_modal_data": {"image": picture}}
            began = time.perf_counter(), time.process_time()
            llm.generate([asked], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
            for name, now, then in zip(("ttft", "cpu"), (time.perf_counter(), time.process_time()), began, strict=True):
                seconds.setdefault((name, obeying), []).extend([now - then] if turn else [])
    found: dict[str, Any] = {}
    for name in ("ttft", "cpu"):
        dense, pruned = (median(seconds[name, obeying]) for obeying in (False, True))
        found |= {f"dense_{name}_s": round(dense, 4), f"{name}_s": round(pruned, 4), f"{name}_ratio": round(pruned / dense, 3)}
    return found | vars(model.counts)


if __name__ == "__main__":
    main()
