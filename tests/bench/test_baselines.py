"""Token pruners: which tokens stay, at which layer, and that nothing else of the dense model changes."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.published import LAYOUTS
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_families import internvl_inputs, next_inputs, qwen_inputs, tiny_internvl, tiny_next, tiny_qwen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from converters.baselines.forward import _attention, advance, generate, generate_each, prefill, prompt, whole
from converters.baselines.pictures import Tower, coarser, entered, look, merged, refusals
from converters.baselines.rows import VISUAL
from converters.baselines.schedule import SCHEDULES, Schedule, Stage, recycled, schedule, split
from converters.baselines.selection import (
    at_random,
    conditionally_diverse,
    contextual,
    least_duplicate,
    most_attended,
    most_covering,
    most_diverse,
    pooled,
    raters,
    recycle,
    relevance,
)
from converters.baselines.smaller import Smaller
from converters.data.prompts import encode
from converters.data.prompts import prompt as prompt_of
from converters.errors import YopoError
from converters.families import family_of
from converters.loading import load_processor
from converters.runtime.plan import Grid, Sizes

LLAVA_7B = Sizes(4096, 11008, 32, 32, 32, 128)
GRID = Grid(24, 24)
TINY = (Grid(4, 4),)


def tiny_sizes(config: Any) -> Sizes:
    text = config.text_config
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    return Sizes(text.hidden_size, text.intermediate_size, text.num_hidden_layers, heads, kv_heads, text.hidden_size // heads)


@pytest.mark.parametrize("method", SCHEDULES)
@pytest.mark.parametrize("share", [0.5, 0.25, 0.12, 0.04])
@pytest.mark.parametrize("layers", [32, 8])
def test_schedule_stays_within_the_share(method: str, share: float, layers: int) -> None:
    made = schedule(method, replace(LLAVA_7B, num_hidden_layers=layers), (GRID,), share)
    assert share * 0.6 < made.share <= share
    assert len(made.by_layer) == layers
    assert all(a >= b for a, b in zip((576, *made.by_layer), made.by_layer, strict=False))


def test_published_settings_are_met_where_the_budget_allows() -> None:
    fastv = schedule("fastv", LLAVA_7B, (GRID,), 0.5)
    assert (fastv.stages[0].layer, fastv.note) == (2, "as published")
    pyramid = schedule("pyramiddrop", LLAVA_7B, (GRID,), 0.469)
    assert [stage.layer for stage in pyramid.stages] == [8, 16, 24]
    assert [stage.kept for stage in pyramid.stages] == pytest.approx([288, 144, 72], rel=0.02)
    # The published setting of 192 tokens, counted, asks for itself.
    stages = (Stage(3, 300, 9), Stage(7, 200, 4), Stage(16, 110, 3))
    assert recycled(276) == (83, 9)
    published = Schedule("sparsevlm", LLAVA_7B, (GRID,), 576, stages)
    assert schedule("sparsevlm", LLAVA_7B, (GRID,), published.share + 1e-6).stages == stages
    assert schedule("visionzip", LLAVA_7B, (GRID,), 64.1 / 576).entering == 65
    assert schedule("downsample", LLAVA_7B, (GRID,), 0.25).coarse == Grid(12, 12)


def test_what_is_out_of_reach_moves_earlier_and_says_so() -> None:
    shallow = replace(LLAVA_7B, num_hidden_layers=8)
    assert schedule("fastv", shallow, (GRID,), 0.2).note == "K = 1 instead of 2"
    assert schedule("fastv", shallow, (GRID,), 0.12).note == "K = 0 instead of 2, ranked by layer 0 before it runs"
    assert schedule("pyramiddrop", LLAVA_7B, (GRID,), 0.12).note == "stages before layers 2, 4, 6 instead of 8, 16, 24; ratio 0.321"
    assert schedule("sparsevlm", LLAVA_7B, (GRID,), 0.12).note == "drops before layers 2, 6, 15 instead of 3, 7, 16"
    with pytest.raises(YopoError, match="fastv cannot stay within"):
        schedule("fastv", LLAVA_7B, (GRID,), 0.0001)
    with pytest.raises(YopoError, match="no token pruner 'lottery'"):
        schedule("lottery", LLAVA_7B, (GRID,), 0.1)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_without_a_stage_it_is_the_dense_model(kv_heads: int) -> None:
    model, config = tiny_llava(layers=3, kv_heads=kv_heads)
    everything = Schedule("random", tiny_sizes(config), TINY, 16)
    inputs = tiny_inputs(config, (3, 5), (1, 2), (6, 4))
    with torch.inference_mode():
        logits = prefill(model, prompt(model, inputs, everything), everything).logits
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(logits, model(**inputs, position_ids=positions).logits[:, -1], atol=1e-5, rtol=0)
    answers = generate(model, inputs, everything, 6)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert answers.equal(expected)


def masked_twin(model: Any, inputs: Any, first: int, gone: list[int], more: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of the last token by the dense model, to whose layers from `first` on the tokens `gone` are invisible."""
    ids = inputs["input_ids"] if more is None else torch.cat([inputs["input_ids"], more], 1)
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:, gone] = False
    mask |= torch.eye(length, dtype=torch.bool)

    def hide(_: Any, arguments: Any, options: dict[str, Any]) -> Any:
        return arguments, options | {"attention_mask": mask[None, None]}

    with ExitStack() as hooks:
        for layer in model.model.language_model.layers[first:]:
            hooks.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
        logits: torch.Tensor = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[:, -1]
    return logits


def eager_attention(model: Any, inputs: Any, layer: int) -> torch.Tensor:
    """The dense model's attention of one layer, averaged over heads, `[queries, keys]`."""
    model.set_attn_implementation("eager")
    attention: torch.Tensor = model(**inputs, output_attentions=True).attentions[layer][0].mean(0)
    model.set_attn_implementation("sdpa")
    return attention


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_fastv_hides_the_least_attended_tokens_from_layer_k_on(kv_heads: int) -> None:
    """In the pass and while decoding; the tokens that stay keep their positions."""
    model, config = tiny_llava(layers=4, kv_heads=kv_heads)
    made = Schedule("fastv", tiny_sizes(config), TINY, 16, (Stage(2, 6),))
    inputs = tiny_inputs(config, (3, 5))
    with torch.inference_mode():
        paid = eager_attention(model, inputs, 1)[-1, 3:19]  # layer K, counted from 1
        gone = sorted(set(range(3, 19)) - {3 + int(place) for place in paid.topk(6).indices})
        decoding = prefill(model, prompt(model, inputs, made), made)
        torch.testing.assert_close(decoding.logits, masked_twin(model, inputs, 2, gone), atol=1e-5, rtol=0)
        assert [layer.keys.shape[2] for layer in decoding.cache.layers] == [24, 24, 14, 14]
        token = torch.tensor([7])
        advance(model, decoding, token)
        torch.testing.assert_close(decoding.logits, masked_twin(model, inputs, 2, gone, token[None]), atol=1e-5, rtol=0)


def test_norms_of_heads_take_part_in_ranking() -> None:
    """Qwen3's: what the last token pays is what the layer itself has it pay."""
    model, inputs, given = tiny_internvl("qwen3"), internvl_inputs(1), []
    language_model = model.model.language_model
    with torch.inference_mode():
        hook = language_model.layers[1].register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        paid = eager_attention(model, inputs, 1)
        hook.remove()
        rows = prompt(model, inputs, Schedule("random", Sizes(64, 48, 3, 8, 2, 16), TINY, 16))
        last = torch.tensor([len(paid) - 1])
        found = _attention(language_model, rows, given[0], None, Stage(1, 8, ranks_itself=True), 0, last)
    torch.testing.assert_close(found.mean(0)[0], paid[-1], atol=1e-5, rtol=0)


def test_pyramiddrop_ranks_by_the_layer_that_comes_next() -> None:
    model, config = tiny_llava(layers=4)
    made = Schedule("pyramiddrop", tiny_sizes(config), TINY, 16, tuple(Stage(place, 16 >> place, ranks_itself=True) for place in (1, 2, 3)))
    inputs = tiny_inputs(config, (3, 5))
    with torch.inference_mode():
        paid = eager_attention(model, inputs, 1)[-1, 3:19]
        stay = sorted(int(place) for place in paid.topk(8).indices)
        whole = Schedule("random", tiny_sizes(config), TINY, 16)
        rows = prompt(model, inputs, whole)
        given = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, arguments, options: given.append((arguments[0], options)), with_kwargs=True)
            for layer in model.model.language_model.layers[:2]
        ]
        prefill(model, rows, whole)
        decoding = prefill(model, rows, made)
        for hook in hooks:
            hook.remove()
    everything, left = given[1], given[3]  # what layer 1 is given without a stage, and with one
    assert left[0][0].equal(everything[0][0, [*range(3), *(3 + place for place in stay), *range(19, 24)]])
    assert left[1]["position_ids"].tolist() == [list(range(16))]  # numbered anew
    assert [layer.keys.shape[2] for layer in decoding.cache.layers] == [24, 16, 12, 10]


def test_sparsevlm_counts_and_recycles() -> None:
    assert recycled(510) == (154, 16)  # 576 -> 66, the published setting of 64 tokens
    model, config = tiny_llava(layers=4)
    made = Schedule("sparsevlm", tiny_sizes(config), TINY, 16, (Stage(1, 8, 1), Stage(2, 4, 1)))
    inputs = tiny_inputs(config, (3, 5))
    with torch.inference_mode():
        decoding = prefill(model, prompt(model, inputs, made), made)
    assert [layer.keys.shape[2] for layer in decoding.cache.layers] == [24, 8 + 9, 8 + 5, 8 + 5]
    visual, text = torch.eye(3), torch.tensor([[9.0, 9, 9], [0, 0, 0], [0, 9, 0]])
    assert raters(visual, text).tolist() == [0]  # 4/3 of an equal share; the others have less
    assert raters(visual, torch.zeros(2, 3)).tolist() == [0, 1]


def test_recycling_averages_clusters_around_dense_tokens() -> None:
    rows = torch.tensor([[0.0, 0], [0, 0.2], [0.2, 0], [2, 2], [2, 1.9]])
    merged_rows, centres = recycle(rows, 2)
    assert sorted(merged_rows.tolist()) == [pytest.approx([0.2 / 3, 0.2 / 3]), pytest.approx([2, 1.95])]
    assert sorted(int(centre) // 3 for centre in centres) == [0, 1]


def test_divprune_takes_the_farthest_next() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.5, 3.0])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    # 1.5 and 3.0 are as far from their neighbours: cosine distance grows with the angle, so 3.0 (1.5 away) comes first.
    assert most_diverse(features, 1).tolist() == [4]
    assert most_diverse(features, 2).tolist() == [0, 4]
    assert most_diverse(features, 3).tolist() == [0, 3, 4]
    assert most_diverse(torch.ones(4, 2), 4).tolist() == [0, 1, 2, 3]


def test_visionzip_keeps_what_the_class_token_sees_and_merges_the_rest() -> None:
    model, config = tiny_llava(side=8)
    inputs = tiny_inputs(config, (1, 2))
    made = Schedule("visionzip", tiny_sizes(config), (Grid(8, 8),), 32)
    model.model.vision_tower.set_attn_implementation("eager")
    with torch.inference_mode():
        tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
        model.model.vision_tower.set_attn_implementation("sdpa")
        seen = look(model, inputs["pixel_values"])
        torch.testing.assert_close(seen.attention, tower.attentions[-2][:, :, 0, 1:])
        torch.testing.assert_close(seen.hidden, tower.hidden_states[-2])
        rows = prompt(model, inputs, made)
        features = rows.hidden[:, rows.of_kind(0, VISUAL)]
        best = sorted(int(place) + 1 for place in tower.attentions[-2][0, :, 0, 1:].sum(0).topk(26).indices)
        expected = model.model.multi_modal_projector(tower.hidden_states[-2][0, [0, *best]])
        torch.testing.assert_close(features[0, :27], expected)  # 54 of 64 are dominant, the class token among them
        assert features.shape == (1, 32, 32)


def test_contextual_tokens_add_the_average_of_their_likes() -> None:
    hidden = torch.tensor([[1.0], [2], [4], [8], [16]])
    keys = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0.1], [0, 1]])
    rows, targets = contextual(hidden, keys, 2)
    assert targets.tolist() == [0, 2]
    assert rows.tolist() == [[1 + (2 + 8) / 2], [4 + 16]]


def test_downsampling_averages_cells() -> None:
    features = torch.arange(16.0)[:, None]
    assert pooled(features, (4, 4), (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    made = Schedule("downsample", LLAVA_7B, (Grid(4, 4),), 4, coarse=Grid(2, 2))
    assert coarser(features, made).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_most_attended_stay_in_order() -> None:
    attention = torch.tensor([[[0.1, 0.5, 0.2, 0.2], [0.1, 0.1, 0.6, 0.2]]])
    assert most_attended(attention, 2).tolist() == [1, 2]


@pytest.mark.parametrize("place", [0, -3])
def test_visionzip_needs_attention_before_the_projector(place: int) -> None:
    model, config = tiny_llava()
    model.config.vision_feature_layer = place
    with pytest.raises(YopoError, match="of which this model's projector sees nothing"):
        look(model, tiny_inputs(config, (1, 2))["pixel_values"])


@pytest.mark.parametrize("method", ["visionzip", "divprune", "cdpruner", "scope", "downsample", "random"])
def test_before_the_language_model_it_is_a_shorter_prompt(method: str) -> None:
    model, config = tiny_llava(layers=2)
    made = Schedule(method, tiny_sizes(config), TINY, 4, coarse=Grid(2, 2) if method == "downsample" else None)
    inputs = tiny_inputs(config, (3, 5))
    with torch.inference_mode():
        ids = inputs["input_ids"]
        short = torch.cat([ids[:, :3], ids[:, 3:7], ids[:, 19:]], 1)
        embeds = model.get_input_embeddings()(short)
        rows = prompt(model, inputs, made)
        embeds[:, 3:7] = rows.hidden[:, rows.of_kind(0, VISUAL)]
        expected = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False)
    assert rows.kinds.tolist() == [[1] * 3 + [2] * 4 + [1] * 5]
    assert generate(model, inputs, made, 5).equal(expected)


@pytest.mark.parametrize("method", SCHEDULES)
def test_a_padded_batch_is_its_samples(method: str) -> None:
    model, config = tiny_llava(layers=4, kv_heads=2)
    made = schedule(method, tiny_sizes(config), TINY, 0.4)
    one, two = tiny_inputs(config, (3, 5)), tiny_inputs(config, (1, 2), seed=1)
    both = tiny_inputs(config, (3, 5), (1, 2))
    both["input_ids"][1, -19:] = two["input_ids"][0]
    both["pixel_values"] = torch.cat([one["pixel_values"], two["pixel_values"]])
    answers = generate(model, both, made, 5)
    for sample, alone in enumerate((one, two)):
        answer = generate(model, alone, made, 5)[0]
        assert answers[sample, : len(answer)].equal(answer)


@pytest.mark.parametrize("method", SCHEDULES)
def test_flop_counter_finds_the_schedules_flops(method: str) -> None:
    """Of the layers' products on what is left, and the keys of all tokens where a layer ranks them before it runs."""
    model, config = tiny_llava(layers=4, heads=4, kv_heads=4)
    sizes, text = tiny_sizes(config), 8
    made = schedule(method, sizes, TINY, 0.4)
    inputs = tiny_inputs(config, (3, 5))
    weights = sizes.hidden_size * (4 * sizes.hidden_size + 3 * sizes.intermediate_size)
    with torch.inference_mode():
        rows = prompt(model, inputs, made)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            prefill(model, rows, made)
    counts = counter.get_flop_counts()["Global"]
    linear = sum(flops for operator, flops in counts.items() if "bmm" not in str(operator))
    expected = sum(2 * (tokens + text) * weights for tokens in made.by_layer) + 2 * sizes.hidden_size * 64  # the head
    extra = linear - expected
    assert rows.hidden.shape[1] == made.entering + text
    assert len(rows.of_kind(0, VISUAL)) == made.entering
    # Ranking: some queries, and the keys of all tokens.
    assert 0 <= extra <= len(made.stages) * 2 * (text + made.entering + text) * sizes.hidden_size**2 + 2 * 16 * text * sizes.hidden_size


def test_a_tower_of_random_numbers_is_enough_to_time_visionzip() -> None:
    model, config = tiny_llava()
    tower = Tower(torch.randn(1, 17, 16), torch.rand(1, 2, 16), torch.randn(1, 17, 8))
    assert merged(model, tower, Schedule("visionzip", tiny_sizes(config), TINY, 6)).shape == (1, 6, 32)


def test_cdpruner_takes_the_subset_of_the_largest_determinant_step_by_step() -> None:
    """Against determinants as they are defined; of two equal tokens one is enough, and what is asked decides which is first."""
    generator = torch.Generator().manual_seed(0)
    features, words = torch.randn(9, 12, generator=generator), torch.randn(3, 12, generator=generator)
    relevant = relevance(features, words)
    assert (float(relevant.min()), float(relevant.max())) == pytest.approx((0, 1), abs=1e-5)
    unit = torch.nn.functional.normalize(features, dim=-1)
    kernel = relevant[:, None] * (unit @ unit.T) * relevant
    greedy: list[int] = []
    for _ in range(5):
        gains = {token: torch.linalg.det(kernel[[*greedy, token]][:, [*greedy, token]]) for token in set(range(9)) - set(greedy)}
        greedy.append(max(gains, key=lambda token: float(gains[token])))
    assert conditionally_diverse(features, relevant, 5).tolist() == sorted(greedy)
    doubled = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert conditionally_diverse(doubled, torch.tensor([0.9, 1, 0.5]), 2).tolist() == [1, 2]
    assert conditionally_diverse(doubled, torch.tensor([0.9, 1, 0.5]), 3).tolist() == [0, 1, 2]  # more than there are directions


def test_scope_takes_what_covers_most() -> None:
    """Coverage as it is defined: the sum over tokens of the largest cosine to a chosen one."""
    generator = torch.Generator().manual_seed(0)
    features, saliency = torch.randn(8, 6, generator=generator), torch.rand(8, generator=generator)
    unit = torch.nn.functional.normalize(features, dim=-1)

    def coverage(tokens: list[int]) -> float:
        return sum(max(0.0, *(float(one @ unit[token]) for token in tokens)) for one in unit) if tokens else 0.0

    greedy: list[int] = []
    for _ in range(4):
        left = [token for token in range(8) if token not in greedy]
        greedy.append(max(left, key=lambda token: (coverage([*greedy, token]) - coverage(greedy)) * float(saliency[token])))
    assert most_covering(features, saliency, 4).tolist() == sorted(greedy)
    # Three alike and one apart: one of the three first, then the other kind, although its class token looks at the three.
    alike = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert most_covering(alike, torch.tensor([0.3, 0.4, 0.3, 0.1]), 2).tolist() == [1, 3]


def test_dart_keeps_pivots_and_what_is_least_like_them() -> None:
    """Published for LLaVA-1.5-7B: 4 and 4 pivots, and 128 of 576 tokens beside the visual ones, 16 for each pivot."""
    states = torch.eye(14)
    states[1:8] = states[0]  # all visual pivots are alike, and four more tokens
    norms = torch.tensor([9.0, 8, 7, 6, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3])
    visual, text = torch.arange(10), torch.arange(10, 14)
    assert least_duplicate(states, norms, visual, text, 4).tolist() == [0, 1, 2, 3]
    assert least_duplicate(states, norms, visual, text, 6).tolist() == [0, 1, 2, 3, 8, 9]
    generator = torch.Generator().manual_seed(0)
    kept = least_duplicate(
        torch.randn(640, 16, generator=generator), torch.rand(640, generator=generator), torch.arange(35, 611), torch.arange(611, 640), 132
    )
    assert len(kept.unique()) == 132


NEXT = next_inputs([(24, 32)], [(16, 16)])
FAMILIES: dict[str, tuple[Any, Any, tuple[tuple[Grid, ...], ...]]] = {
    "qwen2_vl": (lambda: tiny_qwen(), qwen_inputs([(1, 4, 6)], [(1, 6, 4), (1, 2, 3)])[0], ((Grid(4, 6),), (Grid(6, 4), Grid(2, 3)))),
    "qwen2_5_vl": (lambda: tiny_qwen(kind="qwen2_5_vl"), qwen_inputs([(1, 4, 6)], [(1, 6, 4)])[0], ((Grid(4, 6),), (Grid(6, 4),))),
    "internvl": (lambda: tiny_internvl("qwen2"), internvl_inputs(1, 3), ((Grid(4, 4),), (Grid(4, 4),) * 3)),
    "llava_next": (lambda: tiny_next(), NEXT[0], tuple(map(tuple, NEXT[1]))),
}


@pytest.fixture(scope="module", params=FAMILIES)
def other(request: pytest.FixtureRequest) -> Any:
    make, inputs, grids = FAMILIES[request.param]
    return make(), inputs, grids


def sizes_of_other(model: Any) -> Sizes:
    config = model.config.to_dict()
    return family_of(config).sizes(config)


class TestOtherFamilies:
    def test_without_a_stage_it_is_the_dense_model(self, other: Any) -> None:
        model, inputs, _ = other
        found = generate_each(model, inputs, lambda grids: Schedule("random", sizes_of_other(model), (), 0), 4)
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for tokens, one in zip(found, expected, strict=True):
            assert tokens.equal(one[: len(tokens)])

    @pytest.mark.parametrize("method", ["random", "divprune", "cdpruner", "fastv", "pyramiddrop", "sparsevlm", "dart"])
    def test_a_sample_answers_as_it_does_alone(self, other: Any, method: str) -> None:
        """Under the schedule of its own grids, whatever else is in the batch."""
        model, inputs, grids = other
        asked: list[tuple[Grid, ...]] = []

        def made(found: tuple[Grid, ...]) -> Schedule:
            asked.append(found)
            return schedule(method, sizes_of_other(model), found, 0.5)

        both = generate_each(model, inputs, made, 4)
        assert tuple(asked) == grids
        of_first = {"image_grid_thw": lambda: qwen_inputs([(1, 4, 6)])[0], "image_sizes": lambda: next_inputs([(24, 32)])[0]}
        lone = next((make() for name, make in of_first.items() if name in inputs), None) or internvl_inputs(1)
        pixels = inputs["pixel_values"][tuple(map(slice, lone["pixel_values"].shape[:2]))]
        alone = generate_each(model, lone | {"pixel_values": pixels}, made, 4)[0]
        assert both[0].equal(alone)

    def test_multimodal_positions_stay(self, other: Any) -> None:
        """What is left of a picture keeps its rows and columns; where positions are numbers, they are numbered anew."""
        model, inputs, both = other
        rows = whole(model, inputs).of([0])
        grids = both[0]
        left = entered(model, rows, Schedule("random", sizes_of_other(model), grids, 5), seed=1)
        assert len(left.of_kind(0, VISUAL)) == 5
        blocks = rows.of_kind(0, VISUAL).split([grid.tokens for grid in grids])
        visual = torch.cat([block[at_random(len(block), count, 1)] for block, count in zip(blocks, split(5, grids), strict=True)])
        assert left.hidden[0, left.of_kind(0, VISUAL)].equal(rows.hidden[0, visual])
        if rows.positions.dim() == 3:
            assert left.positions[0, left.of_kind(0, VISUAL)].equal(rows.positions[0, visual])
            assert left.seen.equal(rows.seen)
        else:
            assert left.positions[0].tolist() == list(range(left.hidden.shape[1]))


@pytest.mark.parametrize(
    ("model", "methods", "reason"),
    [
        (lambda: tiny_qwen(kind="qwen3_vl"), ("random",), "do not know visual features that are added between layers"),
        (lambda: tiny_qwen(), ("scope", "visionzip", "divprune"), "goes by the class token of LLaVA's vision tower"),
        (lambda: tiny_internvl("phi3"), ("fastv", "dart", "cdpruner"), "this model's projections are fused"),
    ],
)
def test_what_a_model_is_not_for(model: Any, methods: tuple[str, ...], reason: str) -> None:
    refused = dict(refusals(model(), methods))
    assert list(refused) == list(methods[: 2 if len(methods) > 1 else 1])
    assert all(reason in told for told in refused.values())


DOWNSAMPLED = {"Qwen2-VL": (112, [(66, 0), (32, 0), (8, 0)]), "InternVL native": (144, [(80, 0), (32, 0), (32, 8)])}
"""Placeholders of both pictures, then for each share those that are left, and how many enter where tiles are averaged."""


@pytest.mark.parametrize("layout", DOWNSAMPLED)
def test_downsampling_asks_the_processor_for_less(layout: str, tmp_path: Path) -> None:
    """The most pixels, or tiles, with which the picture stays within the share of its own FLOPs."""
    LAYOUTS[layout](tmp_path / "base")
    processor, tokens = load_processor(tmp_path / "base"), 62
    tile = Grid(4, 4)
    pictures = [Image.new("RGB", (96, 32)), Image.new("RGB", (64, 64))]
    text = [prompt_of(processor, "hello", len(pictures))]

    def count(share: float) -> tuple[int, int]:
        smaller = Smaller.of(processor, LLAVA_7B, tile, share)
        assert smaller is not None
        inputs, made = smaller.encoded([(one.height, one.width) for one in pictures], lambda: encode(processor, text, pictures))
        return int((inputs["input_ids"] == tokens).sum()), made.entering

    settings = {name: vars(processor.image_processor).get(name) for name in ("size", "max_patches")}
    dense = int((encode(processor, text, pictures)["input_ids"] == tokens).sum())
    found = [count(share) for share in (0.6, 0.3, 0.12)]
    assert {name: vars(processor.image_processor).get(name) for name in ("size", "max_patches")} == settings
    assert (dense, found) == DOWNSAMPLED[layout]
