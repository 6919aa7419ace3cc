"""One engine under one plan: are its words those of the transformers runtime?

    python benchmarks/serving/words.py FOLDER PLAN [--step 1024] [--caching]

FOLDER is what `prepare.py` wrote. One batch: all questions with a picture, those with two pictures, and those in words alone. Prints one
JSON line; exits with 1 where a word differs, or where a step with visual rows did not obey the plan.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan")
    parser.add_argument("--step", type=int, default=1024)
    parser.add_argument("--caching", action="store_true")
    given = parser.parse_args()
    found = json.loads((given.folder / "words.json").read_text(encoding="utf-8"))
    expected, dense = (sum((found["plans"][plan][part] for part in ("words", "pairs", "texts")), []) for plan in (given.plan, "dense"))
    options = {"max_num_batched_tokens": given.step, "max_num_seqs": min(given.step, 128), "enable_prefix_caching": given.caching}
    llm = engine(given.folder / given.plan, **options)
    asked, model = requests(found, given.folder), served(llm)
    result: dict[str, Any] = {"plan": given.plan, "step": given.step, "caching": given.caching}
    for name in ("cold", "again") if given.caching else ("cold",):
        got, cached = answers(llm, asked)
        counts = [len(found[part]) for part in ("prompts", "pairs", "texts")]
        equal = [one == other for one, other in zip(got, expected, strict=True)]
        as_dense = [one == other for one, other in zip(got, dense, strict=True)]
        pictures, pairs = sum(equal[: counts[0]]), sum(equal[counts[0] : counts[0] + counts[1]])
        texts = sum(as_dense[counts[0] + counts[1] :])
        result[name] = {
            "same": f"{pictures}/{counts[0]}",
            "two_pictures": f"{pairs}/{counts[1]}",
            "texts_as_dense": f"{texts}/{counts[2]}",
            "as_dense": f"{sum(as_dense[: counts[0]])}/{counts[0]}",
            "cached_tokens": cached,
            **vars(model.counts),
        }
        result["right"] = all(equal) and texts == counts[2] and model.counts.yopo_sparse_steps > 0 and not model.counts.yopo_dense_steps
    print(json.dumps(result), flush=True)
    return not result["right"]


if __name__ == "__main__":
    sys.exit(main())
