"""Steps with visual rows against the masked reference, on a tiny LLaVA: whole prompts, prompts cut anywhere, several requests at once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.engine import Layer, Norm, common
from support.random_plans import permuted, random_refits, ranked
from support.random_plans import random_plan as any_plan
from support.tiny import tiny_inputs, tiny_llava
from torch import Tensor

from converters.evaluation.reference import _entering, masked_logits
from converters.families import Layer as Names
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.plan import Grid, Plan, Sizes, normalise
from converters.serving import prefill
from converters.serving.projections import Reading, VisualProjections
from converters.serving.runs import text_runs
from converters.serving.work import layer_works, shown, strides

GRID = Grid(4, 4)
CUTS = {"whole": [100], "cut": [7, 12, 19, 100], "one by one": [*range(1, 30), 100]}


def random_plan(sizes: Sizes, seed: int, ranks: bool) -> Plan:
    """A random plan without a window."""
    plan = any_plan(sizes, seed, (GRID,))
    plan = replace(plan, locality="causal", layers=tuple(replace(layer, window=None) for layer in plan.layers))
    return normalise(ranked(plan, seed) if ranks else plan)


class Engine:
    """The language model of a converted one, as vLLM runs it with the plugin."""

    def __init__(self, model: Any, plan: Plan, refitted: list[int], padding: int) -> None:
        self.plan, self.works, text, size = plan, layer_works(plan, refitted), model.model.language_model, plan.sizes.head_dim
        hiding = any(work.hides for work in self.works)
        padded = size + (padding if hiding else 0)
        rotary = text.rotary_emb
        self.layers = [
            Layer(index, layer, self.works[index], plan.sizes, padded, hiding, rotary) for index, layer in enumerate(text.layers)
        ]
        self.norm, self.head = Norm(text.norm), model.lm_head
        self.projections = {index: VisualProjections(work, plan.sizes) for index, work in enumerate(self.works)}
        reading = Reading(self.projections, self.works, size, "model.language_model.")
        assert not [name for name, _ in reading.through(model.state_dict().items()) if ".visual_" in name]

    def step(self, spans: list[tuple[int, int]], embeds: Tensor, visual: Tensor) -> Tensor:
        """Hidden states of the requests' tokens in these spans; `embeds` and `visual` of whole prompts `[requests, length]`."""
        pieces = [slice(*span) for span in spans]
        rows = torch.cat([embeds[request, piece] for request, piece in enumerate(pieces)])
        mask = torch.cat([visual[request, piece] for request, piece in enumerate(pieces)])
        positions = torch.cat([torch.arange(*span) for span in spans])
        places = [visual[request].cumsum(0)[piece][visual[request, piece]] - 1 for request, piece in enumerate(pieces)]
        order = torch.cat(places)
        known = {stride: torch.tensor(shown(GRID, stride))[order % GRID.tokens] for stride in strides(self.works)}
        names = [layer.self_attn.attn.inner.layer_name for layer in self.layers]
        given = common(spans)
        step = prefill.PrefillStep(mask, positions, known, dict.fromkeys(names, given), dict.fromkeys(names, given.slot_mapping), text_runs)
        return prefill.run(self.layers, self.norm, self.works, self.projections, rows, step)

    def logits(self, embeds: Tensor, visual: Tensor, cuts: list[int]) -> Tensor:
        """Logits of prompts that are cut at these places, the i-th one by i tokens later."""
        requests, length = visual.shape
        found, done = torch.zeros_like(embeds), [0] * requests
        for cut in cuts:
            ends = [min(length, cut + request) for request in range(requests)]
            spans = list(zip(done, ends, strict=True))
            rows = self.step(spans, embeds, visual).split([last - first for first, last in spans])
            for request, ((first, last), part) in enumerate(zip(spans, rows, strict=True)):
                found[request, first:last] = part
            done = ends
        logits: Tensor = self.head(found)
        return logits


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("seed", range(6))
def test_steps_are_the_masked_reference(seed: int, kv_heads: int, cuts: str) -> None:
    model, config = tiny_llava(layers=4, kv_heads=kv_heads, side=4)
    text = config.text_config
    sizes = Sizes(text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads, kv_heads, 8)
    plan = random_plan(sizes, seed, ranks=seed % 2 > 0)
    refits = random_refits(plan, seed) if seed % 2 else {}
    own = permuted(model, plan, YopoLlavaConfig, YopoLlavaForConditionalGeneration, Names(), refits)
    inputs = tiny_inputs(config, (3, 5), (3, 5), images=1 + seed % 2)
    visual = inputs["input_ids"] == config.image_token_id
    with torch.inference_mode():
        expected = masked_logits(own, inputs)
        embeds, *_ = _entering(own, inputs)
        found = Engine(own, plan, sorted(refits), padding=2 + seed % 3).logits(embeds, visual, CUTS[cuts])
    torch.testing.assert_close(found[~visual], expected[~visual], atol=1e-4, rtol=1e-4)
