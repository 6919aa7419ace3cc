"""Refitted projections: K and V of visual tokens by weights of their own, in the runtime and its slow twin."""

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_families as families
from support.conversions import assert_stands_alone, load, provenance, text_rows
from support.decoder_sessions import assert_same_answers, decoder
from support.exports import assert_equal, decoders
from support.healed import RECORD, answered
from support.random_plans import permuted, random_plan, random_refits, ranked
from support.tiny import tiny_inputs, tiny_llava
from support.tiny_runtime import PROMPTS, sizes_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from converters.bench.bounds import pruned_work, refitted_bytes
from converters.bench.models import native
from converters.checkpoint.convert import convert
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.evaluation.reference import _entering, masked_logits
from converters.evaluation.verification import _tensors as _check_tensors
from converters.export.onnx.prompts import arrange
from converters.export.onnx.session import first_call
from converters.families import Layer
from converters.healing.memory import needed
from converters.healing.student import Student, collate
from converters.healing.tuning import tuned_language, tuned_projector
from converters.healing.written import write_healed
from converters.planning.compensation import LinearCompensation
from converters.planning.execution import linear_flops
from converters.runtime.layout import layouts
from converters.runtime.modeling_yopo_internvl import YopoInternVLConfig, YopoInternVLForConditionalGeneration
from converters.runtime.modeling_yopo_llava import YopoLlavaConfig, YopoLlavaForConditionalGeneration
from converters.runtime.modeling_yopo_qwen2_vl import YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration
from converters.runtime.outputs import CACHE
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, factored, normalise

GRID = Grid(4, 4)
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
FUSED = Layer("self_attn.qkv_proj", "self_attn.qkv_proj", "self_attn.qkv_proj", gate="mlp.gate_up_proj", up="mlp.gate_up_proj")


def identities(plan: Plan) -> dict[int, LinearCompensation]:
    """Maps that change nothing."""
    width = plan.sizes.hidden_size
    held = [index for index, layout in enumerate(layouts(normalise(plan))) if layout.visual_kv_heads]
    return {index: LinearCompensation(torch.eye(width), torch.zeros(width)) for index in held}


def llava(model: Any, plan: Plan, refits: dict[int, LinearCompensation]) -> Any:
    return permuted(model, plan, YopoLlavaConfig, YopoLlavaForConditionalGeneration, Layer(), refits)


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("seed", range(6))
def test_llava_is_the_masked_reference(seed: int, kv_heads: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, kv_heads=kv_heads, hidden=64, attention_bias=seed % 2 == 0)
    plan = random_plan(sizes_of(config), seed, (GRID,))
    plain, same = llava(model, plan, {}), llava(model, plan, identities(plan))
    plan = ranked(plan, seed)
    own = llava(model, plan, random_refits(plan, seed))
    # A matrix of queries whose kept heads do not lead is split, unless these go through a rank: then text's products are others.
    split = any(layout.ranked_queries and layout.computing != tuple(range(len(layout.computing))) for layout in layouts(normalise(plan)))
    for name, prompt in PROMPTS.items():
        inputs = tiny_inputs(config, *prompt["prompts"], images=prompt.get("images", 1))
        rows = inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)
        with torch.inference_mode():
            before, found = plain(**inputs).logits[rows], own(**inputs).logits[rows]
            torch.testing.assert_close(same(**inputs).logits[rows], before, atol=3e-5, rtol=0)
            torch.testing.assert_close(found, masked_logits(own, inputs)[rows], **TOLERANCE)
            same_text = name == "text" or not random_refits(plan, seed)
            assert torch.allclose(found, before, **TOLERANCE) if split and same_text else found.equal(before) == same_text
            with own.dense(), plain.dense():
                torch.testing.assert_close(own(**inputs).logits, plain(**inputs).logits, atol=1e-4 if split else 0, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_flop_counter_finds_the_predicted_flops(seed: int) -> None:
    """And the bounds that `bench` prints: a product with a refitted projection is not shared with text."""
    model, config = tiny_llava(layers=4, heads=8, kv_heads=8 if seed % 2 else 4, hidden=64)
    plan = normalise(ranked(random_plan(sizes_of(config), seed, (GRID,)), seed))
    refits = random_refits(plan, seed)
    own, inputs = llava(model, plan, refits), tiny_inputs(config, (3, 5))
    visual, embeds = inputs["input_ids"] == config.image_token_id, torch.zeros(1, inputs["input_ids"].shape[1], 64)
    text_model = own.model.language_model
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        text_model(inputs_embeds=embeds, visual_mask=visual, images=own.model.images)
    counts = counter.get_flop_counts()["Global"]
    linear = sum(flops for operator, flops in counts.items() if "bmm" not in str(operator))
    assert linear == linear_flops(plan, 8)
    products = pruned_work(plan, 8, 1, 10, 4, tuple(refits)).products
    assert sum(product.flops for product in products) == linear + 2 * 64 * 10
    weights = {name: value for name, value in own.state_dict().items() if "visual_" in name}
    assert refitted_bytes(plan, tuple(refits), 4) == sum(value.nbytes for value in weights.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_second_picture_on_the_same_cache(seed: int) -> None:
    model, config = tiny_llava(layers=4, heads=8, hidden=64)
    plan = ranked(random_plan(sizes_of(config), seed, (GRID,)), seed)
    own = llava(model, plan, random_refits(plan, seed))
    one, two = tiny_inputs(config, (3, 5), (3, 5), seed=1), tiny_inputs(config, (4, 3), (4, 3), seed=2)
    inputs = {name: torch.cat([one[name], two[name]], 1) for name in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = torch.stack([one["pixel_values"], two["pixel_values"]], 1).flatten(0, 1)
    rows = inputs["input_ids"] != config.image_token_id
    cache = DynamicCache()
    with torch.inference_mode():
        parts = [
            own(**part, use_cache=True, **{CACHE: cache}).logits for part in (one, {**two, "attention_mask": inputs["attention_mask"]})
        ]
        torch.testing.assert_close(torch.cat(parts, 1)[rows], masked_logits(own, inputs)[rows], **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_qwen2_vl_is_the_masked_reference(seed: int) -> None:
    plan = ranked(random_plan(Sizes(64, 48, 3, 8, 2, 8), seed, (Grid(3, 4),)), seed)
    own = permuted(families.tiny_qwen(), plan, YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration, Layer(), random_refits(plan, seed))
    inputs, grids = families.qwen_inputs([(1, 3, 4)], [(1, 2, 2), (2, 3, 2)])
    rows = text_rows(inputs)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(own, inputs, grids=grids)[rows], **TOLERANCE)


@pytest.mark.parametrize("text", ["qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("seed", range(3))
def test_internvl_is_the_masked_reference(text: str, seed: int) -> None:
    plan = ranked(random_plan(Sizes(64, 48, 3, 8, 8 if text == "phi3" else 2, 16 if text == "qwen3" else 8), seed + 10, (GRID,)), seed)
    own = permuted(
        families.tiny_internvl(text), plan, YopoInternVLConfig, YopoInternVLForConditionalGeneration,
        FUSED if text == "phi3" else Layer(), random_refits(plan, seed),
    )  # fmt: skip
    inputs = families.internvl_inputs(3, 1)
    rows = text_rows(inputs)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(own, inputs, grids=[[GRID] * 3, [GRID]])[rows], **TOLERANCE)


def tiny(kind: str) -> tuple[Any, Any, list[list[Grid]], tuple[Any, ...]]:
    """A model with inputs and the grids in them, and how it is permuted by hand."""
    if kind == "llava":
        model, config = tiny_llava(layers=3, kv_heads=2, attention_bias=True)
        return model, tiny_inputs(config, (3, 5), (1, 2)), [[GRID]] * 2, (YopoLlavaConfig, YopoLlavaForConditionalGeneration, Layer())
    if kind == "qwen2_vl":
        inputs, grids = families.qwen_inputs([(1, 3, 4)], [(1, 2, 2)])
        return families.tiny_qwen(), inputs, grids, (YopoQwen2VLConfig, YopoQwen2VLForConditionalGeneration, Layer())
    own = YopoInternVLConfig, YopoInternVLForConditionalGeneration, FUSED
    return families.tiny_internvl("phi3"), families.internvl_inputs(2, 1), [[GRID] * 2, [GRID]], own


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "phi3"])
def test_written_and_loaded_it_is_what_was_merged_by_hand(kind: str, tmp_path: Path) -> None:
    model, inputs, grids, by_hand = tiny(kind)
    model.save_pretrained(tmp_path / "dense")
    checkpoint = open_checkpoint(tmp_path / "dense")
    without = random_plan(checkpoint.sizes, 3, (GRID,))
    plan = ranked(without, 2)
    refits = random_refits(plan, 1)
    through = len(factored(normalise(plan)))
    assert 0 < through < len(refits)
    assert refits
    progress: list[tuple[int, int]] = []
    facts = replace(provenance(tmp_path / "dense"), refit_samples=7)
    out = convert(
        checkpoint, plan, tmp_path / "out", facts, refits=refits, progress=lambda *step: progress.append(step), max_shard_bytes=50_000
    )
    converted = open_converted(out)
    opened = converted.open_tensors()
    added = sum(info.bytes for info in opened.refitted.values())
    queries = sum(layer.ranked_queries for layer in normalise(plan).layers)
    assert queries
    added_tensors = 4 * len(refits) + 2 * through + 2 * queries
    assert (converted.refitted, len(opened.refitted)) == (tuple(refits), added_tensors)
    assert converted.section["compensation"] == {"method": "refit", "samples": 7, "bytes": added}
    assert opened.tensors.keys() == checkpoint.tensors.keys()
    assert opened.bytes == checkpoint.bytes + added
    assert progress[-1] == (opened.bytes, opened.bytes)
    assert converted.dense_fingerprint() == converted.section["base"]["fingerprint"] == checkpoint.fingerprint()
    assert re.search(
        r"of their own in layers [\d,-]+ \(0\.\d+ MB, no FLOPs more\), fitted on 7 samples\. In layers [\d,-]+ they come through",
        (out / "README.md").read_text(),
    )
    own, expected, rows = load(out), permuted(model, plan, *by_hand, refits), text_rows(inputs)
    with torch.inference_mode():
        logits = own(**inputs).logits[rows]
        torch.testing.assert_close(logits, expected(**inputs).logits[rows], **TOLERANCE)
        torch.testing.assert_close(logits, masked_logits(own, inputs, grids=grids)[rows], **TOLERANCE)
        with pytest.raises(YopoError, match=r"K and V in layers [\d,-]+ have a rank, whose factors have to be fitted"):
            convert(checkpoint, plan, tmp_path / "plain", facts)
        plain = load(convert(checkpoint, without, tmp_path / "plain", facts))
        assert (plain(**inputs).logits[rows] - logits).abs().max() > 1e-2
        with own.dense(), plain.dense():
            assert own(**inputs).logits.equal(plain(**inputs).logits)
    assert "refitted in layers" in own.path_report()
    assert_stands_alone(out, dict(inputs))
    assert load(tmp_path / "saved").state_dict().keys() == own.state_dict().keys()
    assert _check_tensors(converted).endswith(f"and {added_tensors} refitted ones of visual tokens, names and shapes are the model's")


@pytest.fixture
def refitted(tmp_path: Path) -> Path:
    """A converted tiny LLaVA of which layers 0 and 2 are refitted; visual tokens of layer 1 are read by nobody and do nothing."""
    model, _ = tiny_llava(layers=4)
    model.save_pretrained(tmp_path / "dense")
    checkpoint = open_checkpoint(tmp_path / "dense")
    every = LayerPlan((0, 1, 2, 3), (), (), None, 2)
    plan = Plan(checkpoint.sizes, (every, LayerPlan((), (), ()), LayerPlan((1, 2), (0,), (3,)), every), (GRID,))
    refits = {index: LinearCompensation(torch.eye(32) * 1.5, torch.ones(32)) for index in range(3)}
    facts = replace(provenance(tmp_path / "dense"), refit_samples=7)
    return convert(checkpoint, plan, tmp_path / "out", facts, refits=refits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refitted": [0]}, r"visual_k_proj\..* does not belong to a LLaVA-1.5 model"),
        ({"refitted": [0, 2, 3]}, r"lacks 4 of 12 tensors: .*layers\.3\.self_attn\.visual_k_proj"),
        ({"refitted": [0, 1, 2]}, r"refitted layers that does not go with its plan: \[0, 1, 2\]"),
        ({"refitted": [0, 9]}, r"refitted layers that does not go with its plan: \[0, 9\]"),
    ],
)
def test_tensors_that_the_config_does_not_tell_of(refitted: Path, change: dict[str, Any], message: str) -> None:
    assert open_converted(refitted).refitted == (0, 2)
    config = json.loads((refitted / "config.json").read_text())
    config["yopo"] |= change
    (refitted / "config.json").write_text(json.dumps(config))
    with pytest.raises(YopoError, match=message):
        open_converted(refitted).open_tensors()


@pytest.mark.parametrize(
    ("layer", "message"), [(2, r"config.json asks for \[24, 4\]"), (3, r"refitted layers that does not go with its plan: \[0, 2\]")]
)
def test_ranks_whose_factors_are_not_there(refitted: Path, layer: int, message: str) -> None:
    config = json.loads((refitted / "config.json").read_text())
    config["yopo"]["plan"]["layers"][layer]["kv_rank"] = 4
    (refitted / "config.json").write_text(json.dumps(config))
    with pytest.raises(YopoError, match=message):
        open_converted(refitted).open_tensors()


def test_a_shape_that_is_not_the_plans(refitted: Path) -> None:
    tensors = load_file(refitted / "model.safetensors")
    name = "model.language_model.layers.2.self_attn.visual_v_proj.weight"
    tensors[name] = tensors[name][:8].clone()
    save_file(tensors, refitted / "model.safetensors")
    with pytest.raises(YopoError, match=r"visual_v_proj\.weight' .* has shape \[8, 32\], but config\.json asks for \[24, 32\]"):
        open_converted(refitted).open_tensors()


def test_half_precision_is_kept(tmp_path: Path) -> None:
    model, _ = tiny_llava()
    model.half().save_pretrained(tmp_path / "dense")
    checkpoint = open_checkpoint(tmp_path / "dense")
    plan = Plan(checkpoint.sizes, (LayerPlan((0, 1), (), ()),) * 2, (GRID,))
    out = convert(checkpoint, plan, tmp_path / "out", provenance(tmp_path / "dense"), refits=random_refits(plan, 1))
    assert {info.dtype for info in open_converted(out).open_tensors().refitted.values()} == {"F16"}


@pytest.mark.parametrize("language", [False, True])
def test_healing_carries_them_over(refitted: Path, tmp_path: Path, language: bool) -> None:
    converted = open_converted(refitted)
    checkpoint, model = converted.open_tensors(), load(refitted)
    sizes = sum(prod(info.shape) for info in checkpoint.refitted.values())
    without = needed(replace(checkpoint, refitted={}), converted.plan, 2, 1, False)
    assert needed(checkpoint, converted.plan, 2, 1, False).weights == without.weights + 2 * sizes
    found = [record for seed in range(2) for record in answered(model, tiny_inputs(model.config, (3, 5), (1, 2), seed=seed))]
    tuned = tuned_language(model, checkpoint, 0) if language else tuned_projector(model, checkpoint)
    student = Student(model, tuned.part, model.config.image_token_id)
    student(**collate(found))["loss"].backward()
    with torch.no_grad():
        for parameter in tuned.part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.finish()
    record = RECORD | {"tune": "language" if language else "projector"}
    healed = open_converted(write_healed(converted, tuned.tensors(), record, tmp_path / "healed"))
    again = healed.open_tensors()
    assert (healed.refitted, healed.section["compensation"]) == (converted.refitted, converted.section["compensation"])
    assert again.refitted.keys() == checkpoint.refitted.keys()
    same = [name for name in again.refitted if again.read(name).equal(checkpoint.read(name))]
    assert len(same) == len(again.refitted) // (2 if language else 1)  # LoRA adds to weights, not to biases
    batch = tiny_inputs(model.config, (3, 5))
    with torch.inference_mode():
        torch.testing.assert_close(load(healed.path)(**batch).logits, model(**batch).logits, **TOLERANCE)


def test_transformers_dense_model_over_the_same_tensors(refitted: Path) -> None:
    own = load(refitted)
    inputs = tiny_inputs(own.config, (3, 5))
    with torch.inference_mode(), own.dense():
        torch.testing.assert_close(native(own)(**inputs).logits, own(**inputs).logits, **TOLERANCE)


def exported(folder: Path, model: Any, seed: int, grid: Grid = GRID) -> Path:
    """A random plan's checkpoint with refits."""
    model.save_pretrained(folder / "base")
    checkpoint = open_checkpoint(folder / "base")
    plan = ranked(random_plan(checkpoint.sizes, seed, (grid,)), seed)
    refits = random_refits(plan, seed)
    assert refits
    return convert(checkpoint, plan, folder / "out", provenance(folder / "base"), refits=refits)


class TestExports:
    @pytest.mark.parametrize("seed", [0, 1, 4])
    def test_llavas_graphs(self, tmp_path: Path, seed: int) -> None:
        model, config = tiny_llava(layers=4, kv_heads=2 if seed % 2 else 4, attention_bias=seed == 0, seed=seed)
        out = exported(tmp_path, model, seed)
        graphs, own = decoders(out, GRID), load(out)
        assert_equal(graphs, own, tiny_inputs(config, (6, 3), (0, 9)), GRID)
        assert_equal(graphs, own, tiny_inputs(config, (4, 3), (2, 2), images=2), GRID)
        assert_equal(graphs, own, tiny_inputs(config, (4, 7), (1, 3), images=0), None)

    def test_qwen2_vls_graphs(self, tmp_path: Path) -> None:
        out = exported(tmp_path, families.tiny_qwen(), 1, Grid(3, 4))
        assert_equal(decoders(out, Grid(3, 4)), load(out), families.qwen_inputs([(1, 3, 4)], [(1, 3, 4), (1, 3, 4)])[0], Grid(3, 4))

    @pytest.mark.parametrize("text", ["phi3", "qwen3"])
    def test_fused_projections_and_norms_of_heads(self, text: str, tmp_path: Path) -> None:
        out = exported(tmp_path, families.tiny_internvl(text), 4)
        assert_equal(decoders(out, GRID), load(out), families.internvl_inputs(2, 1), GRID)

    def test_one_graph_for_every_call(self, tmp_path: Path) -> None:
        model, config = tiny_llava(layers=4, kv_heads=2)
        out = exported(tmp_path, model, 3)
        opened, own = open_converted(out), load(out)
        for padded in (False, True):
            run = decoder(tmp_path, opened.open_tensors(), opened.plan, padded)
            assert_same_answers(run, own, tiny_inputs(config, (3, 6), (1, 2), images=2))

    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantised_like_the_others(self, tmp_path: Path, bits: int) -> None:
        model, config = tiny_llava(layers=3, heads=4, hidden=256, intermediate=256)
        for parameter in model.model.language_model.parameters():
            parameter.data.mul_(0.25 if parameter.dim() == 2 else 1)  # as large as trained ones, for a stream of this width
        out = exported(tmp_path, model, 0)
        graphs, own, inputs = decoders(out, GRID, bits=bits), load(out), tiny_inputs(config, (5, 7))
        graph = onnx.load(out / "prefill.onnx", load_external_data=False).graph
        weights = [one.name for one in graph.initializer if "visual_k_proj.weight" in one.name]
        assert weights
        assert all(f".int{bits}" in name for name in weights)
        with torch.inference_mode():
            expected, embeds = own(**inputs).logits[:, -1].numpy(), _entering(own, inputs)[0].numpy()
        ids, mask = np.asarray(inputs["input_ids"]), np.asarray(inputs["attention_mask"])
        prompts = arrange(ids, mask, np.isin(ids, graphs.manifest.image_tokens), GRID, False)
        found = first_call(graphs, prompts, embeds).logits
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
