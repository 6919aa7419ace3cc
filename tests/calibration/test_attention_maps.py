"""What heads look at, against the attention that transformers gives out, and distances by hand."""

import pytest
import torch
from support.tiny import tiny_inputs, tiny_llava

from converters.calibration.attention_maps import attention_maps, distances
from converters.errors import YopoError
from converters.runtime.plan import Grid


def test_distances_on_a_grid() -> None:
    """A text token, a picture of 2 x 3 tokens, one of 1 x 2."""
    visual = torch.tensor([[False] + [True] * 8])
    found = distances(visual, [(Grid(2, 3), Grid(1, 2))])[0]
    assert found[0].tolist() == [-1] * 9
    assert found[1].tolist() == [-1, 0, 1, 2, 1, 1, 2, -1, -1]  # the upper left corner
    assert found[8].tolist() == [-1] * 7 + [1, 0]
    frames = distances(torch.ones(1, 4, dtype=torch.bool), [(Grid(1, 2, 2),)])[0]
    assert frames[0].tolist() == [0, 1, -1, -1]  # the next frame is another picture


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_as_transformers_gives_it_out(kv_heads: int) -> None:
    model, config = tiny_llava(heads=4, kv_heads=kv_heads)
    model = model.eval()
    batches = [tiny_inputs(config, (3, 4), images=1, seed=seed) for seed in (0, 1)]
    found = attention_maps(model, batches)
    read, near = torch.zeros(len(found.read), 4), torch.zeros(len(found.read), len(found.by_distance[0]))
    model.set_attn_implementation("eager")
    for batch in batches:
        with torch.inference_mode():
            maps = model(**batch, output_attentions=True).attentions
        visual = batch["input_ids"][0] == config.image_token_id
        side = round(int(visual.sum()) ** 0.5)
        first = int(visual.nonzero()[0])
        for layer, paid in enumerate(maps):
            after = [place for place in range(len(visual)) if not visual[place] and place > first]
            read[layer] += paid[0][:, after][:, :, visual].sum(-1).mean(-1) / 2
            for query in range(side * side):
                for key in range(side * side):
                    apart = max(abs(query // side - key // side), abs(query % side - key % side))
                    near[layer, apart] += paid[0, :, first + query, first + key].mean() / side**2 / 2
    assert torch.allclose(torch.tensor(found.read), read, atol=1e-5)
    assert torch.allclose(torch.tensor(found.by_distance), near, atol=1e-5)
    assert found.samples == 2


def test_nothing_to_look_at() -> None:
    with pytest.raises(YopoError, match="no sample"):
        attention_maps(tiny_llava()[0], [])
