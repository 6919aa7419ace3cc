"""Converted demo models under plans that a served model must obey, and what the transformers runtime answers under each.

    python benchmarks/serving/prepare.py FOLDER

Writes one folder per plan, `pictures/`, and `words.json`: prompts, pictures, and by plan the words of eight forced tokens.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from converters.api import convert, load
from converters.data.prompts import encode, prompt
from converters.data.samples import samples_of
from converters.runtime.plan import LayerPlan, Plan, dense_plan, normalise

QUESTIONS, TOKENS, BATCH = 80, 8, 20
FORCED = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
TEXTS = (
    "USER: what color is the circle? ASSISTANT:",
    "USER: how many squares are there? ASSISTANT:",
    "USER: is there a triangle? ASSISTANT:",
)


def frozen(layer: LayerPlan) -> LayerPlan:
    return replace(layer, self_heads=(), neurons=())


def each(plan: Plan, change: Callable[[int, LayerPlan], LayerPlan]) -> Plan:
    return normalise(replace(plan, layers=tuple(change(index, layer) for index, layer in enumerate(plan.layers))))


def mixed(dense: Plan) -> Plan:
    """A full layer, one with its FFN alone, one with attention alone, frozen ones."""
    kinds: dict[int, Callable[[LayerPlan], LayerPlan]] = {
        0: lambda layer: layer,
        1: lambda layer: replace(layer, self_heads=()),
        2: lambda layer: replace(layer, neurons=()),
        5: lambda layer: replace(layer, neurons=()),
    }
    return each(dense, lambda index, layer: kinds.get(index, frozen)(layer))


def ranked(plan: Plan) -> Plan:
    """K and V of every other layer through a rank, and queries where there are any."""
    return each(plan, lambda index, layer: replace(layer, kv_rank=48 if index % 2 else None))


def plans(dense: Plan) -> dict[str, tuple[Plan, bool]]:
    """By name: a plan, and whether K and V of visual tokens are refitted."""
    all_frozen = each(dense, lambda index, layer: frozen(layer))
    last = len(dense.layers) - 1
    return {
        "dense": (normalise(dense), False),
        "frozen": (all_frozen, False),
        "refitted": (all_frozen, True),
        "ranked": (ranked(all_frozen), True),
        "mixed": (mixed(dense), False),
        "mixed-ranked": (ranked(mixed(dense)), True),
        "depth": (each(mixed(dense), lambda index, layer: replace(layer, read_heads=layer.read_heads if index < last - 1 else ())), True),
        "unread": (each(mixed(dense), lambda index, layer: replace(layer, read_heads=layer.read_heads[index % 3 :: 2])), False),
        "strides": (each(all_frozen, lambda index, layer: replace(layer, read_stride=(1, 2, 3, 1, 5)[index % 5])), True),
        "partial": (each(dense, partial), False),
        "hard": (each(dense, hard), True),
    }


def partial(index: int, layer: LayerPlan) -> LayerPlan:
    """Some heads and some neurons of every layer, other ones in each."""
    return replace(layer, self_heads=layer.self_heads[index % 2 :: 3], neurons=layer.neurons[index::5])


def hard(index: int, layer: LayerPlan) -> LayerPlan:
    """Something of everything, in a depth of seven."""
    read = () if index == 7 else layer.read_heads[:: 1 + index % 2]
    return replace(partial(index, layer), read_heads=read, read_stride=1 + index % 3, kv_rank=None if index % 3 else 64)


def prompts(processor: Any) -> tuple[list[str], list[Any], list[str]]:
    """Prompts, pictures and answers of questions that plans are not made on."""
    samples = list(samples_of("demo", answers=True, count=QUESTIONS, seed=7).stream())
    return (
        [prompt(processor, one.question, 1) for one in samples],
        [one.picture() for one in samples],
        [one.answer or "" for one in samples],
    )


def words(folder: Path, processor: Any, texts: list[str], pictures: list[list[Any]]) -> list[str]:
    """What the runtime answers, in batches."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for first in range(0, len(texts), BATCH):
            some = slice(first, first + BATCH)
            inputs = encode(processor, texts[some], [picture for images in pictures[some] for picture in images])
            new = model.generate(**inputs, **FORCED)[:, inputs["input_ids"].shape[1] :]
            found += [processor.tokenizer.decode(row, skip_special_tokens=False).strip() for row in new]
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model = load("demo", device="cpu", dtype="float32")
    processor = model.loaded.processor
    texts, pictures, answers = prompts(processor)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for place, picture in enumerate(pictures):
        picture.save(folder / "pictures" / f"{place}.png")
    pairs = [text.replace("<image>", "<image>\n<image>", 1) for text in texts[:20]]
    found: dict[str, Any] = {"prompts": texts, "answers": answers, "texts": TEXTS, "pairs": pairs, "plans": {}}
    for name, (plan, refit) in plans(dense_plan(model.checkpoint.sizes, (model.checkpoint.grid,))).items():
        out, how = folder / name, {"refit": refit, "force": True, "command": f"prepare.py: {name}"}
        convert(model, plan, out, samples="demo", count=64, **how)
        found["plans"][name] = {
            "words": words(out, processor, texts, [[picture] for picture in pictures]),
            "texts": words(out, processor, list(TEXTS), [[] for _ in TEXTS]),
            "pairs": words(out, processor, pairs, [pictures[place : place + 2] for place in range(20)]),
        }
        same = sum(one == other for one, other in zip(found["plans"][name]["words"], found["plans"]["dense"]["words"], strict=True))
        right = sum(one.startswith(answer) for one, answer in zip(found["plans"][name]["words"], answers, strict=True))
        print(f"{name}: {same}/{QUESTIONS} as dense, {right} right, e.g. {found['plans'][name]['words'][0]!r}", flush=True)
    (folder / "words.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    from converters.runtime.registration import register

    register()

    main(Path(sys.argv[1]))
