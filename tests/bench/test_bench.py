"""What `bench` counts, shares and prints; nothing here depends on how long anything takes."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny import tiny_llava
from support.tiny_families import tiny_internvl, tiny_next, tiny_qwen, tiny_smol
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from converters.baselines.schedule import SCHEDULES, schedule
from converters.bench.bounds import Product, dense_work, pruned_work, refitted_bytes
from converters.bench.ceiling import Ceiling, measure_ceiling
from converters.bench.clock import Timing, in_turns
from converters.bench.measure import DENSE, Contender, Setting, measure
from converters.bench.models import cut, native, published_config, random_model, random_prompt, visual_grids, with_plan
from converters.bench.sides import model_side
from converters.errors import YopoError
from converters.families import family_of
from converters.planning.execution import linear_flops
from converters.planning.recipes import make_plan
from converters.runtime.matmul import WAYS, ways
from converters.runtime.plan import Grid, Plan, Sizes, dense_plan, normalise
from yopo_cli.app import app

GRID = Grid(4, 4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dense() -> Any:
    return tiny_llava(layers=4, heads=8, hidden=64)[0]


def sizes_of(dense: Any) -> Sizes:
    return family_of(dense.config.to_dict()).sizes(dense.config.to_dict())


def plans(dense: Any, budget: float) -> dict[str, Plan]:
    return {recipe: make_plan(recipe, None, sizes_of(dense), (GRID,), budget) for recipe in ("yopo", "interlaced")}


def test_sides_take_turns_from_both_ends() -> None:
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in ("dense", "a", "b")}
    timings = in_turns(sides, "dense", 2, CPU, warmup=0)
    assert order == ["dense", "a", "b", "b", "a", "dense"]
    assert timings["dense"].ratio == 1


def test_ratio_is_the_median_of_rounds() -> None:
    timing = Timing((1.0, 2.0, 30.0), (2.0, 2.0, 10.0))  # the machine slowed down in the last round
    assert (timing.median, timing.ratio) == (2, 1)
    assert timing.spread == (16 - 1.5) / 2
    assert Timing((3.0,), (1.0,)).spread == 0


def test_the_bound_is_the_slower_of_counting_and_reading() -> None:
    product = Product(rows=2, inner=3, outer=5)
    assert (product.flops, product.bytes(2)) == (60, 2 * (6 + 10 + 15))
    assert Ceiling(10, 1000).seconds(60, 62) == 6
    assert Ceiling(1000, 10).seconds(60, 62) == 6.2


@pytest.mark.parametrize("recipe", ["yopo", "interlaced"])
@pytest.mark.parametrize("budget", [0.5, 0.12])
def test_bounds_count_what_is_executed(dense: Any, recipe: str, budget: float) -> None:
    plan, vocabulary = plans(dense, budget)[recipe], 64
    head = 2 * plan.sizes.hidden_size * vocabulary
    linear = sum(product.flops for product in pruned_work(plan, 8, 1, vocabulary, 4).products)
    assert linear == linear_flops(plan, 8) + head
    for refitted in ((0,), tuple(range(len(plan.layers)))):
        work, plain = (pruned_work(plan, 8, 1, vocabulary, 4, layers).products for layers in (refitted, ()))
        assert sum(product.flops for product in work) == linear
        more, before = (sum(4 * product.inner * product.outer for product in products) for products in (work, plain))
        assert more - before == refitted_bytes(plan, refitted, 4) * plan.sizes.hidden_size // (plan.sizes.hidden_size + 1)
    whole = dense_plan(plan.sizes, (GRID,))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        dense(input_ids=torch.full((1, 24), 5), logits_to_keep=1)
    counts = counter.get_flop_counts()["Global"]
    counted = sum(flops for operator, flops in counts.items() if "bmm" not in str(operator))
    assert sum(product.flops for product in dense_work(whole, 8, 1, vocabulary, 4).products) == counted


def test_figures_of_every_side(dense: Any) -> None:
    contenders = [Contender(recipe, 0.4, plan=plan) for recipe, plan in plans(dense, 0.4).items()]
    contenders += [Contender(method, 0.4, schedule=schedule(method, sizes_of(dense), (GRID,), 0.4)) for method in SCHEDULES]
    setting = Setting((GRID,), text_tokens=8, batch=2, rounds=1, steps=1, tower=True)
    figures = measure(dense, contenders, setting, Ceiling(1e9, 1e9))
    assert [one.name for one in figures] == [DENSE, *(one.name for one in contenders)]
    for one in figures:
        assert one.kv_bytes == one.kv_bytes_predicted
        assert one.visual_share <= 0.4 or one.name == DENSE
        assert one.efficiency == pytest.approx(one.total_share / one.prefill.ratio)
        assert one.ttft is not None
        assert one.decode is not None
        assert (one.prefill.least is None) == (one.kind == "tokens")
    assert (figures[0].visual_share, figures[0].total_share, figures[0].kv_share) == (1, 1, 1)


def test_a_pruned_model_shares_the_dense_ones_weights(dense: Any) -> None:
    pruned = with_plan(dense, plans(dense, 0.4)["interlaced"])
    own = dict(pruned.named_parameters())
    assert all(parameter.data_ptr() == own[name].data_ptr() for name, parameter in dense.named_parameters())
    again = native(pruned)
    assert again.config.model_type == "llava"
    prompt = random_prompt(dense, (GRID,), 8, 1)
    with torch.inference_mode():
        assert again(prompt.ids).logits.equal(dense(prompt.ids).logits)


def test_larger_grids_of_the_same_model(dense: Any) -> None:
    grid = Grid(6, 6)
    plan = make_plan("yopo", None, sizes_of(dense), (grid,), 0.3)
    figures = measure(dense, [Contender("yopo", 0.3, plan=plan)], Setting((grid,), 8, 1, 1, 0, False), Ceiling(1e9, 1e9))
    assert figures[1].kv_bytes == figures[1].kv_bytes_predicted
    assert figures[1].decode is None


def test_published_configs_ship_with_the_package() -> None:
    for name, layers, width in (("llava-1.5-7b", 32, 4096), ("llava-1.5-13b", 40, 5120)):
        config = published_config(name)
        sizes = family_of(config).sizes(config)
        assert (sizes.num_hidden_layers, sizes.hidden_size) == (layers, width)
        assert family_of(config).sizes(cut(config, 2)) == replace(sizes, num_hidden_layers=2)
    assert published_config("nobody") is None


def test_random_weights_fill_every_parameter(dense: Any) -> None:
    model = random_model(dense.config.to_dict(), CPU, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        assert parameter.abs().max() > 0, name
    assert model.model.language_model.rotary_emb.inv_freq.equal(dense.model.language_model.rotary_emb.inv_freq)


ONCE = ["--rounds", "1", "--steps", "1", "--no-tower", "--text-tokens", "4"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture(autouse=True)
def _small_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.bench.ceiling.READ_BYTES", 1 << 16)
    monkeypatch.setattr("converters.bench.ceiling.ENOUGH_SECONDS", 0.0)


def test_the_ceiling_is_of_all_ways_of_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a pruned model could be faster than the least that is thought possible."""
    tried = set()

    def heard(name: str, way: Any) -> Any:
        return lambda rows, weight: (tried.add(name), way(rows, weight))

    there = ways(torch.float32)
    for name, way in there.items():
        monkeypatch.setitem(WAYS, name, heard(name, way))
    measure_ceiling(CPU, torch.float32, 8, 16, 32)
    assert tried == set(there)


def test_bench_ends_with_one_json_line(tmp_path: Any, dense: Any) -> None:
    dense.config.save_pretrained(tmp_path)
    sizes = ["--visual-tokens", "16,36", "--batch-sizes", "1,2"]
    result = run(str(tmp_path), "--random-weights", "--layers", "3", "--budget", "0.5", *sizes, "--against", "fastv,random", *ONCE)
    assert result.exit_code == 0, result.output
    *tables, line = result.stdout.strip().splitlines()
    record = json.loads(line)
    assert record["sizes"]["num_hidden_layers"] == 3
    assert [(one["visual_tokens"], one["batch"]) for one in record["runs"]] == [(16, 1), (16, 2), (36, 1), (36, 2)]
    assert [side["name"] for side in record["runs"][0]["sides"]] == ["dense", "yopo", "interlaced", "fastv", "random"]
    assert any(text.startswith("ceiling, measured") for text in tables)
    alone = run(str(tmp_path), "--random-weights", "--json", *ONCE)
    assert json.loads(alone.stdout)["runs"][0]["sides"][0]["name"] == "dense"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--visual-tokens", "577"], "577 visual tokens are no square grid"),
        (["--against", "lottery"], "no token pruner 'lottery'"),
        (["--recipe", "luck"], "no recipe 'luck'"),
        (["--budget", "1.5"], "budget is 1.5"),
        (["--budget", "0"], "budget is 0"),
        (["--layers", "2"], "--layers cuts a model with random weights"),
    ],
)
def test_what_cannot_be_timed_is_told(arguments: list[str], message: str) -> None:
    result = run("demo", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert run("demo", "--visual-tokens", "many").exit_code == 2


@pytest.mark.parametrize(
    ("model", "grids"),
    [
        (tiny_qwen(), (Grid(3, 4),)),
        (tiny_qwen(kind="qwen3_vl"), (Grid(3, 4),)),
        (tiny_internvl("llama"), (GRID,) * 3),
        (tiny_internvl("qwen3"), (GRID,) * 2),
        (tiny_internvl("phi3"), (GRID,)),
        (tiny_next(), (GRID, Grid(6, 9))),
        (tiny_smol(), (GRID,) * 2),
    ],
)
def test_other_families_through_the_same_figures(model: Any, grids: tuple[Grid, ...]) -> None:
    """Any grid with its positions, features added between layers, several tiles, norms of heads, fused projections, ends of rows."""
    sizes = sizes_of(model)
    contenders = [Contender(recipe, 0.4, plan=make_plan(recipe, None, sizes, grids, 0.4)) for recipe in ("yopo", "interlaced")]
    contenders.append(Contender("everything", 1, plan=normalise(dense_plan(sizes, grids))))
    figures = measure(model, contenders, Setting(grids, 8, 2, 1, 1, False), Ceiling(1e9, 1e9))
    assert [one.kv_bytes for one in figures] == [one.kv_bytes_predicted for one in figures]
    assert figures[-1].kv_share == 1
    given = random_prompt(model, grids, 8, 2)
    with torch.inference_mode():  # nothing is permuted: what prunes nothing is the dense model
        whole = model_side("everything", with_plan(model, contenders[-1].plan), given)
        dense = model_side("dense", model, given)
        torch.testing.assert_close(whole.prefill().logits, dense.prefill().logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(whole.answer().logits, dense.answer().logits, atol=1e-4, rtol=0)


def test_visual_tokens_are_a_square_or_tiles() -> None:
    assert visual_grids(published_config("llava-1.5-7b"), 9216) == (Grid(96, 96),)
    assert visual_grids(published_config("qwen2-vl-7b"), 576) == (Grid(24, 24),)
    assert visual_grids(published_config("internvl2-8b"), 2304) == (Grid(16, 16),) * 9
    with pytest.raises(YopoError, match="no whole tiles"):
        visual_grids(published_config("internvl2-8b"), 576)
