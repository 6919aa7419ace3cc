"""How often the demo model answers exactly right: `python -m tools.demo.evaluate FOLDER`."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from converters.data.demo.shapes import KINDS, samples

BATCH_SIZE = 50


def evaluate(folder: Path, count: int, seed: int, split: str, dtype: torch.dtype) -> dict[str, float]:
    """Share of exact answers by greedy generation, over all questions (`all`) and by kind."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)  # evaluation mode already
    asked = list(samples(count, seed, split))
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, count, BATCH_SIZE):
        part = asked[start : start + BATCH_SIZE]
        chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}] for sample in part]
        prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        images = [sample.image for sample in part]
        inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True).to(dtype)
        with torch.inference_mode():
            produced = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answers = processor.batch_decode(produced[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for sample, answer in zip(part, answers, strict=True):
            right[sample.kind].append(answer.strip() == sample.answer)
    shares = {"all": sum(map(sum, right.values())) / count}
    shares |= {kind: sum(right[kind]) / len(right[kind]) for kind in KINDS if right[kind]}
    return {name: round(share, 4) for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="eval")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    print(json.dumps(evaluate(options.folder, options.count, options.seed, options.split, getattr(torch, options.dtype))))


if __name__ == "__main__":
    main()
