"""LLaVA-NeXT's ends of rows, as visual tokens or as text: accuracy and FLOPs of the same plans, on the evidence model `llava-next`.

python -m benchmarks.ends_of_rows --questions 500
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters.planning.execution import linear_flops
from converters.planning.measure.answers import Answered
from converters.planning.measure.trials import Trials
from converters.planning.recipes import make_plan
from converters.runtime.any_resolution import AnyResolution, is_end
from converters.runtime.modeling_yopo_llava_next import YopoLlavaNextModel
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise
from converters.runtime.token_split import Image

from .study import Setting, Subject, taught

TEXT = 64


def without_ends(self: Any, visual: Tensor, positions: Tensor | None, rows: Tensor, videos: Tensor | None = None) -> tuple[Image, ...]:
    """Pictures whose ends of rows are text: grids with a column less."""
    ends = is_end(rows, self.image_newline)
    images, place, sample = [], 0, 0
    for image in AnyResolution.images(self, visual | ends, positions, rows):
        if image.sample != sample:
            place, sample = 0, image.sample
        grid = image.grid if image.grid.rows == image.grid.columns == 4 else Grid(image.grid.rows, image.grid.columns - 1)
        images.append(Image(sample, place, grid))
        place += grid.tokens
    return tuple(images)


def plans(sizes: Sizes, grids: tuple[Grid, ...]) -> dict[str, Plan]:
    """Everything frozen and read by strides, and the recipe `interlaced`."""
    heads = tuple(range(sizes.num_attention_heads))
    frozen = {
        f"frozen, stride {stride}": normalise(Plan(sizes, (LayerPlan(heads, (), (), None, stride),) * sizes.num_hidden_layers, grids))
        for stride in (1, 2, 3, 5)
    }
    return frozen | {f"interlaced, {budget}": make_plan("interlaced", None, sizes, grids, budget) for budget in (0.25, 0.12)}


def accuracy(subject: Subject, answers: Sequence[tuple[Answered, Tensor]], grids: tuple[Grid, ...], plan: Plan) -> float:
    trials = Trials(subject.model, (one for one, _ in answers), dense_plan(subject.sizes, grids), memory_bytes=2 << 30)
    right: list[bool] = []
    for (batch, pruned, _), (_, tokens) in zip(trials.logits(plan), answers, strict=True):
        right += [bool(answer.all()) for answer in (pruned.argmax(-1) == tokens).split(batch.lengths)]
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(Setting("llava-next", "sizes", options.questions, 8, (0.25,), Path("none")))
    visual = [taught(subject.model, subject.processor, *pair) for pair in zip(*subject.exam, strict=True)]
    newline = subject.model.model.image_newline
    text = [(replace(one, visual=one.visual & ~is_end(one.embeds, newline)), tokens) for one, tokens in visual]
    tile, large = Grid(4, 4), Grid(12, 13)
    sides = {"visual": (visual, (tile, large)), "text": (text, (tile, Grid(12, 12)))}
    print("| plan | ends are visual | share of the prefill | ends are text | share of the prefill |\n|---|---|---|---|---|")
    whole = linear_flops(dense_plan(subject.sizes, (tile, large)), TEXT)
    kept = YopoLlavaNextModel.images
    for name in plans(subject.sizes, (tile, large)):
        cells = []
        for side, (answers, grids) in sides.items():
            YopoLlavaNextModel.images = kept if side == "visual" else without_ends  # type: ignore[method-assign]
            plan = plans(subject.sizes, grids)[name]
            words = TEXT + (0 if side == "visual" else large.rows)
            cells.append(f"{100 * accuracy(subject, answers, grids, plan):.1f} | {100 * linear_flops(plan, words) / whole:.1f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
