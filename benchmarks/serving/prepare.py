"""Converted models under plans that a served model must obey, the demo and tiny random ones, and what the transformers runtime answers.

    python benchmarks/serving/prepare.py FOLDER [demo] [qwen2_vl] [qwen2_5_vl] [qwen3_vl] [internvl] [internvl_qwen3]

Writes for each model one folder per plan, pictures and videos, and `words.json`: prompts, files, and by plan the words of eight forced
tokens.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quantised
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from converters.api import convert, load
from converters.data.prompts import prompt
from converters.data.sample import Sample
from converters.data.samples import samples_of
from converters.runtime import registration
from converters.runtime.plan import LayerPlan, Plan, dense_plan, normalise

QUESTIONS, TOKENS, BATCH = 80, 8, 20
QUANTISED = ("dense", "refitted", "ranked")
"""Plans of the demo that are quantised as well."""
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
        "partial": (each(dense, parts), False),
        "hard": (each(dense, hard), True),
    }


def parts(index: int, layer: LayerPlan) -> LayerPlan:
    """Some heads and some neurons of every layer, other ones in each."""
    return replace(layer, self_heads=layer.self_heads[index % 2 :: 3], neurons=layer.neurons[index::5])


def hard(index: int, layer: LayerPlan) -> LayerPlan:
    """Something of everything, in a depth of seven."""
    read = () if index == 7 else layer.read_heads[:: 1 + index % 2]
    return replace(parts(index, layer), read_heads=read, read_stride=1 + index % 3, kv_rank=None if index % 3 else 64)


@dataclass(frozen=True)
class Asked:
    """Prompts, each with its pictures and videos (frames `[frames, height, width, 3]`), and the questions that they were made of."""

    prompts: list[str]
    pictures: list[list[Any]]
    videos: list[list[Any]]
    questions: list[str]

    @classmethod
    def of(
        cls,
        prompts: list[str],
        pictures: list[list[Any]] | None = None,
        videos: list[list[Any]] | None = None,
        questions: list[str] | None = None,
    ) -> "Asked":
        none: list[list[Any]] = [[] for _ in prompts]
        return cls(prompts, pictures or none, videos or none, questions or [])

    def save(self, folder: Path) -> dict[str, Any]:
        """Pictures and videos as files; what is asked as JSON, with their names."""
        folder.mkdir(parents=True, exist_ok=True)
        places = [[f"{folder.name}/{place}-{number}" for number in range(8)] for place in range(len(self.prompts))]
        for names, pictures, videos in zip(places, self.pictures, self.videos, strict=True):
            for name, picture in zip(names, pictures, strict=False):
                picture.save(folder.parent / f"{name}.png")
            for name, video in zip(names, videos, strict=False):
                np.save(folder.parent / f"{name}.npy", video)
        files = [
            [*(f"{name}.png" for name in names[: len(pictures)]), *(f"{name}.npy" for name in names[: len(videos)])]
            for names, pictures, videos in zip(places, self.pictures, self.videos, strict=True)
        ]
        return {"prompts": self.prompts, "files": files, "questions": self.questions}


def demo_asked(processor: Any) -> dict[str, Asked]:
    """Questions that plans are not made on, some of them with two pictures, and words alone."""
    samples = list(samples_of("demo", answers=True, count=QUESTIONS, seed=7).stream())
    texts, pictures = [prompt(processor, one.question, 1) for one in samples], [one.picture() for one in samples]
    pairs = [prompt(processor, one.question, 2) for one in samples[:20]]
    return {
        "pictures": Asked.of(texts, [[picture] for picture in pictures], questions=[one.question for one in samples]),
        "pairs": Asked.of(pairs, [pictures[place : place + 2] for place in range(20)]),
        "texts": Asked.of(list(TEXTS)),
    }


def tiny_asked(picture: str, video: str | None, processor: Any) -> dict[str, Asked]:
    """Made-up words with noise of several sizes."""
    choose = np.random.default_rng(0)

    def said(*places: str) -> str:
        return " ".join([*(f"w{word}" for word in choose.integers(4, 59, 4)), *places, *(f"w{word}" for word in choose.integers(4, 59, 5))])

    def noise(*shape: int) -> Any:
        return choose.integers(0, 255, (*shape, 3), dtype=np.uint8)

    sizes = [(32, 48), (64, 32), (48, 48), (32, 32)]
    pictures = [[Image.fromarray(noise(*sizes[place % 4]))] for place in range(20)]
    asked = {
        "pictures": Asked.of([said(picture) for _ in pictures], pictures),
        "pairs": Asked.of([said(picture, "w5", picture) for _ in range(8)], [pictures[place] + pictures[place + 1] for place in range(8)]),
        "texts": Asked.of([said() for _ in range(3)]),
    }
    if video is not None:
        asked["videos"] = Asked.of([said(video) for _ in range(4)], None, [[noise(2 * (1 + place % 3), 32, 48)] for place in range(4)])
    return asked


def words(folder: Path, processor: Any, asked: Asked, batch: int, kind: str | None = None) -> list[str]:
    """What the runtime answers, in batches; with its text weights quantised in a kind of `quantised.KINDS`."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    if kind is not None:
        quantised.quantise(model, kind)
    configured = model.generation_config.eos_token_id
    ends = [processor.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured] if configured else [])]
    found = []
    with torch.inference_mode():
        for first in range(0, len(asked.prompts), batch):
            some = slice(first, first + batch)
            seen = {"images": asked.pictures[some], "videos": asked.videos[some]}
            flat = {kind: [one for many in each for one in many] for kind, each in seen.items()}
            inputs = processor(
                text=asked.prompts[some], padding=True, return_tensors="pt", **{kind: each for kind, each in flat.items() if each}
            )
            new = model.generate(**inputs, **FORCED, eos_token_id=ends)[:, inputs["input_ids"].shape[1] :]
            found += [processor.tokenizer.decode(row, skip_special_tokens=False).strip() for row in new]
    return found


def prepare(folder: Path, name: str, samples: Any, asked: Callable[[Any], dict[str, Asked]], batch: int, names: list[str]) -> None:
    """All that `words.py` needs for one model, by name or in a folder."""
    model = load(name, device="cpu", dtype="float32")
    processor = model.loaded.processor
    given = asked(processor)
    found: dict[str, Any] = {"asked": {part: one.save(folder / part) for part, one in given.items()}, "plans": {}}
    for plan_name, (plan, refit) in plans(dense_plan(model.checkpoint.sizes, model.checkpoint.grids)).items():
        if names and plan_name not in names:
            continue
        out, how = folder / plan_name, {"refit": refit, "force": True, "command": f"prepare.py: {plan_name}"}
        convert(model, plan, out, samples=samples if refit else None, count=64, **how)
        answers = {part: words(out, processor, one, batch) for part, one in given.items()}
        found["plans"][plan_name] = answers
        same = sum(one == other for one, other in zip(answers["pictures"], found["plans"]["dense"]["pictures"], strict=True))
        print(f"{folder.name}, {plan_name}: {same}/{len(answers['pictures'])} as dense, e.g. {answers['pictures'][0]!r}", flush=True)
        for kind in quantised.KINDS if plan_name in QUANTISED and folder.name == "demo" else ():
            quantised.write(out, folder / f"{plan_name}-{kind}", kind)
            found["plans"][f"{plan_name}-{kind}"] = {part: words(out, processor, one, batch, kind) for part, one in given.items()}
    (folder / "words.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


FAMILIES = {
    "qwen2_vl": ("Qwen2-VL", "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen2_5_vl": ("Qwen2.5-VL", "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
    "qwen3_vl": ("Qwen3-VL", "<|vision_start|><|image_pad|><|vision_end|>", None),
    "internvl": ("InternVL native", "<IMG_CONTEXT>", None),
    "internvl_qwen3": ("InternVL3.5, Qwen3", "<IMG_CONTEXT>", None),
}
"""Folder, layout of a tiny random model with its processor in the tests, and the places of pictures and videos."""


def main(folder: Path, names: list[str]) -> None:
    registration.register()
    torch.set_num_threads(1)
    if not names or "demo" in names:
        prepare(folder / "demo", "demo", "demo", demo_asked, BATCH, [])
    from support.published import LAYOUTS

    for name, (layout, picture, video) in FAMILIES.items():
        if names and name not in names:
            continue
        base = folder / name / "base"
        if not base.exists():
            base.parent.mkdir(parents=True, exist_ok=True)
            LAYOUTS[layout](base)
        pictures = [Sample(Image.effect_noise((48, 32), 90).convert("RGB"), f"w{place} w9") for place in range(4, 12)]
        names_of = ["dense", "mixed", "unread", "strides", "hard"]
        prepare(folder / name, str(base), pictures, partial(tiny_asked, picture, video), 1, names_of)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
