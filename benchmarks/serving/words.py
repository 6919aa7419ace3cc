"""Engines under plans: are its words those of the transformers runtime?

    python benchmarks/serving/words.py FOLDER [PLAN ...] [--step 1024] [--caching]

FOLDER is one of those that `prepare.py` wrote. One batch: all questions with a picture, those with two pictures, videos where there are
any, and those in words alone. Prints a JSON line for each plan; exits with 1 where a word differs, where a text is not the dense model's,
or where a step with visual rows did not obey the plan.
"""

import argparse
import json
import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

TIMED = ("qwen2_5_vl",)
ENOUGH = 0.95
"""Where weights are quantised, rows are rounded as well, to whole numbers or, for vLLM's CPU kernel of four bits, to bfloat16, and the last
bit of a sum decides in many places: this share of the answers has to have the same first word. Later ones come after an answer's end."""


def engine(folder: Path, **options: Any) -> Any:
    from vllm import LLM

    usual: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        "max_model_len": 512,
        "block_size": 32,
    }
    return LLM(model=str(folder), **(usual | options))


def served(llm: Any) -> Any:
    """The model inside an engine of this process."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


def video(frames: Any, timed: bool) -> Any:
    """Frames, for models that know of time with the rate that transformers takes where none is given."""
    count = len(frames)
    facts = {
        "fps": 24.0,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "duration": count / 24,
        "do_sample_frames": False,
    }
    return (frames, facts) if timed else frames


def requests(asked: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    found = []
    for prompt, files in zip(asked["prompts"], asked["files"], strict=True):
        pictures = [Image.open(folder / file).convert("RGB") for file in files if file.endswith(".png")]
        videos = [video(np.load(folder / file), folder.name in TIMED) for file in files if file.endswith(".npy")]
        seen = {kind: each for kind, each in (("image", pictures), ("video", videos)) if each}
        found.append({"prompt": prompt, **({"multi_modal_data": seen} if seen else {})})
    return found


def answers(llm: Any, asked: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Words of eight forced tokens, and how many prompt tokens were in the cache."""
    from vllm import SamplingParams

    outputs = llm.generate(asked, SamplingParams(temperature=0, max_tokens=8, min_tokens=8, skip_special_tokens=False), use_tqdm=False)
    return [one.outputs[0].text.strip() for one in outputs], sum(one.num_cached_tokens or 0 for one in outputs)


def check(folder: Path, found: dict[str, Any], plan: str, step: int, caching: bool) -> dict[str, Any]:
    """What an engine of this process answers under one plan: once, and with caching once again."""
    _, quantised, kind = plan.partition("-W")
    expected, dense = found["plans"][plan], found["plans"][f"dense{quantised}{kind}"]
    wanted = [one for each in expected.values() for one in each]
    options: dict[str, Any] = {"dtype": "bfloat16" if kind == "4A16" else "float32"}
    options |= {"max_num_batched_tokens": step, "max_num_seqs": min(step, 128), "enable_prefix_caching": caching}
    limit = {"image": 2} | ({"video": 1} if "videos" in expected else {})
    llm = engine(folder / plan, limit_mm_per_prompt=limit, **options)
    asked, model = [one for part in expected for one in requests(found["asked"][part], folder)], served(llm)
    result: dict[str, Any] = {"model": folder.name, "plan": plan, "step": step, "caching": caching, "right": True}
    for name in ("cold", "again") if caching else ("cold",):
        got, cached = answers(llm, asked)
        words = iter(got)
        parts = {part: [next(words) for _ in each] for part, each in expected.items()}
        same = {part: sum(map(str.__eq__, each, expected[part])) for part, each in parts.items()}
        as_dense = {part: sum(map(str.__eq__, each, dense[part])) for part, each in parts.items()}
        whole = {part: len(each) for part, each in parts.items()}
        result[name] = {"same": {part: f"{same[part]}/{whole[part]}" for part in parts}, "as_dense": as_dense, "cached_tokens": cached}
        result[name] |= vars(model.counts)
        obeyed = model.counts.yopo_sparse_steps > 0 and not model.counts.yopo_dense_steps
        if quantised:
            first = sum(one.split()[:1] == other.split()[:1] for one, other in zip(got, wanted, strict=True))
            result[name]["first"] = f"{first}/{len(got)}"
            agreed = first >= ENOUGH * len(got)
        else:
            agreed = same == whole and as_dense["texts"] == whole["texts"]
        result["right"] &= agreed and obeyed and (cached > 0 or name == "cold")
    return result


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("plans", nargs="*")
    parser.add_argument("--step", type=int, default=1024)
    parser.add_argument("--caching", action="store_true")
    given = parser.parse_args()
    found = json.loads((given.folder / "words.json").read_text(encoding="utf-8"))
    import vllm.model_executor.models.llava  # noqa: F401  # once, for all engines: each has a process of its own

    def one(plan: str) -> None:
        result = check(given.folder, found, plan, given.step, given.caching)
        print(json.dumps(result), flush=True)
        os._exit(not result["right"])

    failed = []
    for plan in given.plans or found["plans"]:
        process = get_context("fork").Process(target=one, args=(plan,))
        process.start()
        process.join()
        failed += [plan] if process.exitcode else []
    print(json.dumps({"failed": failed}), flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
