"""Adapters of the dense model: in a pruned model's order, merged before pruning, and refused where they are not converted."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.checkpoints import save_model
from support.conversions import load, provenance
from support.random_plans import random_plan
from support.tiny import tiny_inputs
from support.tiny_families import internvl_inputs, tiny_internvl
from support.tiny_runtime import text_rows
from torch import nn

import yopo
from converters.adapters.adapt import reordered
from converters.adapters.adapter import open_adapter
from converters.adapters.merge import Merged, with_adapter
from converters.checkpoint.convert import convert
from converters.checkpoint.permutation import Permutation
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks transformers by an older name
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = Sizes(64, 48, 3, 8, 4, 8)
EVERY = tuple(range(8))
MOVING = Plan(SIZES, (LayerPlan(EVERY, (1, 5, 7), (3, 5, 40)), LayerPlan((2, 6), (4,), (7,)), LayerPlan((3,), (), ())), (Grid(4, 4),))
OPTIONS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "biases": {"lora_bias": True, "bias": "all"},
    "ranks and alphas by pattern": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.mlp.down_proj": 9}},
    "a projector and a head of its own": {"modules_to_save": ["multi_modal_projector", "lm_head"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    save_model(folder, layers=3, heads=8, kv_heads=4, hidden=64, attention_bias=True)
    return folder


@pytest.fixture(scope="module")
def pruned(base: Path) -> Path:
    return convert(open_checkpoint(base), MOVING, base.parent / "pruned", provenance(base))


def trained(base: Path, folder: Path, names: Sequence[str] = PROJECTIONS, **options: Any) -> tuple[Path, Any]:
    """An adapter of the dense model on all its projections, as if it had learned, and the dense model with it."""
    whole = get_peft_model(load(base), LoraConfig(r=3, lora_alpha=6, target_modules=list(names), **options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand(len(parameter)))
            elif "lora_" in name or "modules_to_save" in name or (options.get("bias") and name.endswith("bias")):
                nn.init.normal_(parameter, std=0.1)
    whole.save_pretrained(folder)
    return folder, whole


def test_rows_of_b_and_columns_of_a_move() -> None:
    down, up = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    parts = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": torch.tensor([4.0, 5.0, 6.0])}
    rows, columns = Permutation(0, (2, 0, 1)), Permutation(1, (2, 0, 1))
    moved = reordered("gate", parts, {"gate.weight": rows})
    assert moved["lora_A.weight"] is down
    assert moved["lora_B.weight"].tolist() == [[3], [1], [2]]
    assert moved["lora_magnitude_vector"].tolist() == [6, 4, 5]
    moved = reordered("down", parts, {"down.weight": columns})
    assert moved["lora_A.weight"].tolist() == [[3, 1, 2]]
    assert moved["lora_B.weight"] is up
    assert moved["lora_magnitude_vector"].tolist() == [4, 5, 6]
    assert reordered("norm", parts, {"gate.weight": rows}) == parts
    fused = Permutation(0, (1, 0)).followed_by(Permutation(0, (0,)))
    assert reordered("qk", parts, {"qk.weight": fused})["lora_B.weight"].tolist() == [[2], [1], [3]]


def test_what_merging_adds() -> None:
    weight, parts = (
        torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
        {"lora_A.weight": torch.eye(2), "lora_B.weight": torch.tensor([[0.0, 0], [1, 0]])},
    )
    assert Merged(None, parts, 2.0).apply(weight).tolist() == [[3, 4], [2, 1]]
    lengths = {**parts, "lora_magnitude_vector": torch.tensor([10.0, 1.0])}
    assert Merged(None, lengths, 0.0).apply(weight).tolist() == [[6, 8], [0, 1]]


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter 'default'")
@pytest.mark.parametrize("kind", OPTIONS)
def test_converted_it_does_to_the_dense_side_what_it_did_to_the_dense_model(base: Path, pruned: Path, tmp_path: Path, kind: str) -> None:
    adapter, dense = trained(base, tmp_path / "adapter", **OPTIONS[kind])
    done = yopo.adapt(adapter, pruned, tmp_path / "converted")
    assert (done.reordered, done.unreached) == (18, ())  # the last layer has no neurons to move
    whole = PeftModel.from_pretrained(load(pruned), done.output).eval()
    inputs = tiny_inputs(whole.base_model.model.config, (3, 5), (1, 2))
    rows = text_rows(inputs, whole.base_model.model.config)
    with torch.no_grad(), whole.base_model.model.dense():
        torch.testing.assert_close(whole(**inputs).logits[rows], dense(**inputs).logits[rows], atol=1e-5, rtol=1e-5)
        assert (whole(**inputs).logits - load(base)(**inputs).logits)[rows].abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter 'default'")
@pytest.mark.parametrize("kind", OPTIONS)
def test_merged_first_it_is_what_peft_merges(base: Path, tmp_path: Path, kind: str) -> None:
    names = PROJECTIONS[:4] if kind == "biases" else PROJECTIONS  # those that have one
    adapter, dense = trained(base, tmp_path / "adapter", names, **OPTIONS[kind])
    merged = load(convert(with_adapter(open_checkpoint(base), adapter), None, tmp_path / "merged", provenance(base)))
    expected = dense.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter 'default'")
def test_a_bias_has_to_have_a_place(base: Path, tmp_path: Path) -> None:
    adapter, _ = trained(base, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(YopoError, match=r"gives .*proj a bias, which the model does not have"):
        with_adapter(open_checkpoint(base), adapter)


def test_convert_merges_first(base: Path, tmp_path: Path) -> None:
    adapter, dense = trained(base, tmp_path / "adapter")
    done = yopo.convert(base, MOVING, tmp_path / "out", adapter=adapter)
    assert done.model == "tiny+adapter"
    own = load(tmp_path / "out")
    inputs = tiny_inputs(own.config, (3, 5))
    rows = text_rows(inputs, own.config)
    with torch.no_grad(), own.dense():
        torch.testing.assert_close(own(**inputs).logits[rows], dense(**inputs).logits[rows], atol=1e-5, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


def test_an_adapter_for_another_order_is_refused(base: Path, pruned: Path, tmp_path: Path) -> None:
    adapter, _ = trained(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="trained on the dense LlavaForConditionalGeneration"):
        PeftModel.from_pretrained(load(pruned), adapter)
    with pytest.raises(ValueError, match="trained on the dense LlavaForConditionalGeneration"):
        load(pruned).load_adapter(str(adapter))
    other = replace(MOVING, layers=(*MOVING.layers[:2], LayerPlan((6,), (), ())))
    elsewhere = convert(open_checkpoint(base), other, tmp_path / "other", provenance(base))
    done = yopo.adapt(adapter, elsewhere, tmp_path / "converted")
    with pytest.raises(ValueError, match=r"another order of heads and neurons \([0-9a-f]{12}, this one's is [0-9a-f]{12}\)"):
        PeftModel.from_pretrained(load(pruned), done.output)
    PeftModel.from_pretrained(load(elsewhere), done.output)


@pytest.mark.parametrize("name", ["folder", "someone/tiny", "tiny"])
def test_without_its_class_it_is_told_by_its_bases_name(base: Path, pruned: Path, tmp_path: Path, name: str) -> None:
    adapter, _ = trained(base, tmp_path / "adapter", task_type="CAUSAL_LM")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None
    config["base_model_name_or_path"] = str(base) if name == "folder" else name
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    model = load(pruned)
    model.config.yopo["base"]["repository"] = "someone/tiny"
    with pytest.raises(ValueError, match="whose heads and neurons have another order"):
        PeftModel.from_pretrained(model, adapter)


def test_an_adapter_of_the_pruned_model_is_its_own(pruned: Path, tmp_path: Path) -> None:
    adapter, whole = trained(pruned, tmp_path / "adapter")
    inputs = tiny_inputs(whole.base_model.model.config, (3, 5))
    again = PeftModel.from_pretrained(load(pruned), adapter)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, whole(**inputs).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(YopoError, match="adapter of a pruned model already"):
        yopo.adapt(adapter, pruned, tmp_path / "converted")


def _config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _tensor(name: str, shape: tuple[int, ...]) -> Any:
    def change(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file) | {f"base_model.model.model.language_model.layers.0.{name}": torch.ones(shape)}, file)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_config(peft_type="LOHA"), "of the kind 'LOHA', not LoRA"),
        (_config(layer_replication=[[0, 2]]), "sets layer_replication, which cannot be carried over"),
        (_config(something_new=True), "sets something_new, which"),
        (_config(init_lora_weights="pissa"), "begun with 'pissa', which changes the base weights"),
        (_config(lora_alpha="six"), "has no lora_alpha that is a number"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "non_lora_trainables.bin").touch(), "non_lora_trainables.bin holds weights that"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json does not exist"),
        (
            _tensor("self_attn.q_proj.lora_A.weight", (3, 65)),
            r"lora_A.weight of .*q_proj is \[3, 65\], which does not go with .*\[64, 64\]",
        ),
        (_tensor("self_attn.w_proj.lora_A.weight", (3, 64)), "one of two matrices of .*w_proj|adapts .*w_proj"),
        (_tensor("self_attn.q_proj.hada_w1_a", (3, 64)), "hada_w1_a' of .* is not LoRA on a linear layer"),
    ],
)
def test_what_cannot_be_converted_is_refused(base: Path, pruned: Path, tmp_path: Path, change: Any, message: str) -> None:
    adapter, _ = trained(base, tmp_path / "adapter")
    change(adapter)
    with pytest.raises(YopoError, match=message):
        yopo.adapt(adapter, pruned, tmp_path / "converted")
    with pytest.raises(YopoError, match=message):
        with_adapter(open_checkpoint(base), adapter)
    assert not (tmp_path / "converted").exists()


def test_fused_projections(tmp_path: Path) -> None:
    """Phi-3 has queries, keys and values in one matrix, gate and up in another."""
    tiny_internvl("phi3").save_pretrained(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    plan = random_plan(checkpoint.sizes, 11, (Grid(4, 4),))
    convert(checkpoint, plan, tmp_path / "pruned", provenance(tmp_path / "base"))
    adapter, dense = trained(tmp_path / "base", tmp_path / "adapter", names=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))
    whole = PeftModel.from_pretrained(load(tmp_path / "pruned"), yopo.adapt(adapter, tmp_path / "pruned", tmp_path / "converted").output)
    inputs = internvl_inputs(1, 2)
    rows = inputs["attention_mask"].bool() & (inputs["input_ids"] < 60)
    with torch.no_grad(), whole.eval().base_model.model.dense():
        torch.testing.assert_close(whole(**inputs).logits[rows], dense(**inputs).logits[rows], atol=1e-5, rtol=1e-5)


def test_modules_in_an_older_layout(base: Path, pruned: Path, tmp_path: Path) -> None:
    """transformers 4 called LLaVA's language model `language_model.model`."""
    adapter, _ = trained(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("model.model.language_model.", "model.language_model.model."): tensors[name] for name in tensors}, file)
    converted = open_converted(pruned)
    modules = open_adapter(adapter, converted.family, converted.open_tensors().config).modules
    assert "model.language_model.layers.0.self_attn.q_proj" in modules
    assert len(modules) == len(tensors) // 2
