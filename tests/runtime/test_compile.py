"""The layers of a prefill under torch.compile: one graph, the same rows and cache."""

import pytest
import torch
from support.tiny import tiny_llava
from support.tiny_runtime import sizes_of

from converters.bench.models import random_prompt, with_plan
from converters.planning.recipes import make_plan
from converters.runtime.plan import Grid


@pytest.mark.filterwarnings("ignore")  # of the compiler's own, which differ between versions of PyTorch
@pytest.mark.parametrize(("budget", "stride"), [(0.4, 1), (0.1, 3)])
def test_all_layers_are_one_graph(budget: float, stride: int) -> None:
    """Frozen stretches, offsets, self heads, neurons; the embedding and the split into streams stay outside."""
    dense, config = tiny_llava(layers=3, heads=4, hidden=32)
    plan = make_plan("interlaced", None, sizes_of(config), (Grid(4, 4),), budget)
    assert max(layer.read_stride for layer in plan.layers) == stride
    own = with_plan(dense, plan)
    text_model = own.model.language_model
    visual = random_prompt(dense, (Grid(4, 4),), 8, 2).ids == config.image_token_id
    embeds = torch.randn(2, 24, 32)
    seen = []
    with torch.inference_mode():
        for run in (text_model._through, torch.compile(text_model._through, backend="eager", fullgraph=True, dynamic=False)):
            call, _, cached, parts = text_model._opened(embeds, None, None, None, visual, own.model.images)
            run(call, cached, parts)
            seen.append((call.text, [layer.nbytes for layer in cached]))
    assert seen[1][0].equal(seen[0][0])
    assert seen[1][1] == seen[0][1]
