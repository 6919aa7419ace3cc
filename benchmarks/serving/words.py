"""Engines under plans: are its words those of the transformers runtime?

    python benchmarks/serving/words.py FOLDER [PLAN ...] [--step 1024] [--caching]

FOLDER is what `prepare.py` wrote. One batch: all questions with a picture, those with two pictures, and those in words alone. Prints a
JSON line for each plan; exits with 1 where a word differs, or where a step with visual rows did not obey the plan.
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

PARTS = ("words", "pairs", "texts")


def engine(folder: Path, **options: Any) -> Any:
    from vllm import LLM

    usual: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "distributed_executor_backend": "uni", "max_model_len": 1024}
    return LLM(model=str(folder), **(usual | {"limit_mm_per_prompt": {"image": 2}} | options))


def served(llm: Any) -> Any:
    """The model inside an engine of this process."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


def requests(found: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    from PIL import Image

    pictures = [Image.open(folder / "pictures" / f"{place}.png").convert("RGB") for place in range(len(found["prompts"]))]
    asked = [{"prompt": text, "multi_modal_data": {"image": pictures[place]}} for place, text in enumerate(found["prompts"])]
    asked += [{"prompt": text, "multi_modal_data": {"image": pictures[place : place + 2]}} for place, text in enumerate(found["pairs"])]
    return asked + [{"prompt": text} for text in found["texts"]]


def answers(llm: Any, asked: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Words of eight forced tokens, and how many prompt tokens were in the cache."""
    from vllm import SamplingParams

    outputs = llm.generate(asked, SamplingParams(temperature=0, max_tokens=8, min_tokens=8, skip_special_tokens=False), use_tqdm=False)
    return [one.outputs[0].text.strip() for one in outputs], sum(one.num_cached_tokens or 0 for one in outputs)


def check(folder: Path, found: dict[str, Any], plan: str, step: int, caching: bool) -> dict[str, Any]:
    """What an engine of this process answers under one plan: once, and with caching once again."""
    expected, dense = (sum((found["plans"][name][part] for part in PARTS), []) for name in (plan, "dense"))
    options = {"max_num_batched_tokens": step, "max_num_seqs": min(step, 128), "enable_prefix_caching": caching}
    llm = engine(folder / plan, **options)
    asked, model = requests(found, folder), served(llm)
    result: dict[str, Any] = {"plan": plan, "step": step, "caching": caching, "right": True}
    for name in ("cold", "again") if caching else ("cold",):
        got, cached = answers(llm, asked)
        counts = [len(found[part]) for part in ("prompts", "pairs", "texts")]
        kinds = [kind for kind, count in zip(PARTS, counts, strict=True) for _ in range(count)]
        equal = [kind for kind, one, other in zip(kinds, got, expected, strict=True) if one == other]
        as_dense = [kind for kind, one, other in zip(kinds, got, dense, strict=True) if one == other]
        result[name] = {
            "same": f"{equal.count('words')}/{counts[0]}",
            "two_pictures": f"{equal.count('pairs')}/{counts[1]}",
            "texts_as_dense": f"{as_dense.count('texts')}/{counts[2]}",
            "as_dense": f"{as_dense.count('words')}/{counts[0]}",
            "cached_tokens": cached,
            **vars(model.counts),
        }
        obeyed = model.counts.yopo_sparse_steps > 0 and not model.counts.yopo_dense_steps
        result["right"] &= len(equal) == len(got) and as_dense.count("texts") == counts[2] and obeyed
        result["wrong"] = [(place, got[place], expected[place]) for place in range(len(got)) if got[place] != expected[place]][:3]
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
