"""What happens where text loses heads too: the same heads pruned for visual tokens alone, and for all tokens (arXiv 2410.06169, section 3).

    python benchmarks/heads_of_text.py llava-1.5-7b --drop 20 --task gqa,scienceqa,textvqa-ocr --protocol llava -o heads-of-text.json

Heads are dropped in every layer but the first two, those with the least attention to visual tokens, as the paper's recipe ranks them;
all neurons stay, and there is no window. The record is a file of `yopo eval --json`'s form, which `yopo report` draws.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from converters.api import calibrate
from converters.calibration.statistics import Statistics
from converters.data.samples import BUNDLED
from converters.evaluation.answering import generate
from converters.evaluation.benchmarks import EvaluationRequest, asked_by, evaluate_sides, names_of
from converters.evaluation.planned import planned
from converters.evaluation.sides import EvaluatedModel, Group, Side, model_group, subject_of
from converters.families import family_of
from converters.model import load
from converters.planning.cost import cost
from converters.runtime.plan import LayerPlan, Plan, dense_plan

EXEMPT = 2  # the paper keeps all heads of layers 0 and 1


def kept_heads(statistics: Statistics, drop: int) -> list[tuple[int, ...]]:
    """Of each layer, the heads that stay: all but the `drop` with the least attention to visual tokens."""
    ratios = statistics.ratio_quantile()
    heads = ratios.shape[1]
    order = ratios.argsort(1)
    return [tuple(range(heads)) if layer < EXEMPT else tuple(sorted(order[layer, drop:].tolist())) for layer in range(ratios.shape[0])]


def visual_plan(dense: Plan, kept: list[tuple[int, ...]]) -> Plan:
    """These heads for visual tokens, everything for text."""
    neurons = tuple(range(dense.sizes.intermediate_size))
    return replace(dense, layers=tuple(LayerPlan(heads, heads, neurons) for heads in kept))


@contextmanager
def without_heads(model: Any, kept: list[tuple[int, ...]]) -> Iterator[None]:
    """Within, the other heads add nothing, to no token."""
    config = model.config.to_dict()
    family = family_of(config)
    sizes = family.sizes(config)
    hooks = []
    for layer, heads in zip(model.model.language_model.layers, kept, strict=True):
        mask = torch.zeros(sizes.num_attention_heads)
        mask[list(heads)] = 1
        mask = mask.repeat_interleave(sizes.head_dim).to(model.device, model.dtype)
        output = layer.get_submodule(family.layer.output)
        hooks.append(output.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def groups(subject: EvaluatedModel, kept: list[tuple[int, ...]]) -> Iterator[Group]:
    """The dense model, and the two ablations."""
    loaded = subject.loaded
    dense = dense_plan(subject.sizes, subject.grids)
    plan = visual_plan(dense, kept)
    yield model_group(subject)

    def text_too(inputs: Any, most: int) -> list[str]:
        with without_heads(loaded.model, kept):
            return generate(loaded, inputs, most)

    yield Group(("visual and text",), lambda: [Side("visual and text", text_too, {"visual_share": cost(plan).share})])

    def visual_alone() -> list[Side]:
        pruned = replace(loaded, model=planned(loaded.model, plan))
        return [Side("visual only", lambda inputs, most: generate(pruned, inputs, most), {"visual_share": cost(plan).share})]

    yield Group(("visual only",), visual_alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--drop", type=int, default=20, help="heads dropped in each layer")
    parser.add_argument("--task", default="demo")
    parser.add_argument("--protocol", default="checkpoint")
    parser.add_argument("--samples", type=int, help="questions of each task")
    parser.add_argument("--calibration", default=BUNDLED)
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    model = load(options.model)
    kept = kept_heads(calibrate(model, options.calibration, count=options.calibration_samples), options.drop)
    request = EvaluationRequest(
        names_of(options.task), options.protocol, options.samples, save=options.output.with_suffix(".answers.jsonl")
    )
    subject = subject_of(model)
    evaluation = evaluate_sides(model, request, asked_by(request), subject, list(groups(subject, kept)))
    options.output.write_text(json.dumps(evaluation, indent=2))
    for name, task in evaluation["tasks"].items():
        for side, one in task["sides"].items():
            figure, value = next(iter(one["figures"].items()))
            print(f"{name}: {side}: {figure} {value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})", file=sys.stderr)


if __name__ == "__main__":
    main()
