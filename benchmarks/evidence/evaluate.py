"""How often a model answers exactly right: `python -m benchmarks.evidence.evaluate FOLDER --set harder`."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

from converters.data.demo.sets import SETS, samples
from converters.data.prompts import encode, prompt
from converters.loading import Dtype, load

BATCH_SIZE = 25


@torch.inference_mode()
def accuracy(folder: Path, questions: str, count: int, seed: int, split: str = "eval") -> dict[str, float]:
    """Share of exact answers by greedy generation, over all questions (`all`) and by kind."""
    loaded = load(folder, "cpu", Dtype.FLOAT32)
    asked = list(samples(questions, count, seed, split))
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, count, BATCH_SIZE):
        part = asked[start : start + BATCH_SIZE]
        inputs = encode(loaded.processor, [prompt(loaded.processor, one.question, 1) for one in part], [one.image for one in part])
        produced = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answers = loaded.processor.batch_decode(produced[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for one, answer in zip(part, answers, strict=True):
            right[one.kind].append(answer.strip() == one.answer)
    shares = {"all": sum(map(sum, right.values())) / count} | {kind: sum(right[kind]) / len(right[kind]) for kind in right}
    return {name: round(share, 4) for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=list(SETS), default="demo")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="eval")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(accuracy(options.folder, options.set, options.count, options.seed, options.split)))


if __name__ == "__main__":
    main()
