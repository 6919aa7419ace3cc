"""Published head masks and fine-tuned checkpoints as plans; how far their zeroed probabilities are from ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import save_model
from support.conversions import load
from support.layouts import llava_llama
from support.tiny import tiny_inputs, tiny_llava
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from converters.checkpoint.native import native_model
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.evaluation.reference import masked_logits
from converters.planning.headmask import Cuts, config_headmask, headmask_plan, read_headmask
from converters.runtime.plan import Grid, LayerPlan, Sizes, normalise
from yopo_cli.app import app

SIZES = Sizes(32, 48, 2, 4, 4, 8)
MASK = np.array([[True, True, True, True], [True, False, False, True]])


def test_a_mask_by_hand() -> None:
    plan = headmask_plan(MASK, Cuts(window=3, depth=1, ffn_ratio=4), SIZES, (Grid(4, 4),))
    assert plan.locality == "symmetric"
    assert plan.layers == (LayerPlan((0, 1, 2, 3), (0, 1, 2, 3), tuple(range(12)), 3), LayerPlan((), (), ()))
    plan = headmask_plan(MASK, Cuts(), SIZES, (Grid(4, 4),))
    assert plan.layers[1] == LayerPlan((0, 3), (0, 3), tuple(range(48)))


def test_a_fine_tuned_checkpoint_says_its_cuts() -> None:
    config = {"attncut_w": 5, "layercut_num": 20, "headcut_num": 16, "mlpcut_ratio": 2, "sprompt_len": 35}
    assert Cuts.of(config) == Cuts(5, 20, 2)
    assert Cuts(window=7).filled(Cuts.of(config)) == Cuts(7, 20, 2)
    assert Cuts.of({"model_type": "llava"}) == Cuts()


@pytest.mark.parametrize(
    ("mask", "cuts", "sentence"),
    [
        (MASK[:, :2], Cuts(), "has 2 x 2 layers x heads, the model 2 x 4"),
        (MASK, Cuts(window=4), "The window is 4"),
        (MASK, Cuts(depth=3), r"The depth is 3, not within 0\.\.2"),
        (MASK, Cuts(ffn_ratio=0), "The FFN ratio is 0"),
    ],
)
def test_what_does_not_fit(mask: "np.ndarray", cuts: Cuts, sentence: str) -> None:
    with pytest.raises(YopoError, match=sentence):
        headmask_plan(mask, cuts, SIZES, (Grid(4, 4),))


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    file = tmp_path / "mask.npy"
    file.write_text("no")
    with pytest.raises(YopoError, match="cannot be read"):
        read_headmask(file)
    np.save(file, np.ones((2, 4)))
    with pytest.raises(YopoError, match=r"is float64 \[2, 4\]"):
        read_headmask(file)


def test_converts_with_a_mask(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"attncut_w": 3, "mlpcut_ratio": 2, "sprompt_len": 35}))
    np.save(tmp_path / "mask.npy", MASK)
    command = ["convert", str(tmp_path / "base"), "--plan", str(tmp_path / "mask.npy"), "--ffn-ratio", "4", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert open_converted(tmp_path / "out").plan == normalise(headmask_plan(MASK, Cuts(3, None, 4), SIZES, (Grid(4, 4),)))
    assert "--ffn-ratio 4" in (tmp_path / "out" / "README.md").read_text()
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "base"), "--budget", "0.5", "--window", "5"])
    assert result.exit_code == 2


def test_how_far_zeroed_probabilities_are_from_ours() -> None:
    """Their code zeroes a pruned head's probabilities after the softmax, so that visual keys stay in the denominator."""
    model, config = tiny_llava(layers=2)
    inputs = tiny_inputs(config, (3, 5))
    plan = headmask_plan(np.array([[True, True, False, False]] * 2), Cuts(), SIZES, (Grid(4, 4),))
    visual = inputs["input_ids"][0] == config.image_token_id

    def zeroed(module: object, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: object, **options: object) -> object:
        length = query.shape[2]
        scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(~torch.ones(length, length).tril().bool(), float("-inf"))
        probabilities = scores.softmax(-1)
        probabilities[:, 2:, :, visual] = 0  # no one reads visual keys there
        seen = probabilities @ value
        seen[:, 2:, visual] = 0  # and visual tokens compute nothing
        return seen.transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("zeroed", zeroed)
    with torch.inference_mode():
        dense = model(**inputs).logits[0, -1]
        ours = masked_logits(model, inputs, plan)[0, -1]
        model.set_attn_implementation({"text_config": "zeroed"})
        theirs = model(**inputs).logits[0, -1]
    gap, effect = (theirs - ours).abs().max(), (theirs - dense).abs().max()
    assert 0.1 < gap / effect < 1, f"gap {gap:.2f}, effect of pruning {effect:.2f}"


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """A checkpoint as the authors release theirs: LLaVA's original layout, the cuts in config.json, the head mask beside it."""
    llava_llama.save(tmp_path)
    file = tmp_path / "base" / "config.json"
    cuts = {"attncut_w": 3, "layercut_num": 1, "headcut_num": 3, "mlpcut_ratio": 2, "sprompt_len": 35}
    file.write_text(json.dumps(json.loads(file.read_text()) | cuts))
    np.save(tmp_path / "mask.npy", MASK)
    return tmp_path


def test_a_fine_tuned_checkpoint_runs_pruned(fine_tuned: Path) -> None:
    """End to end: what the converted model computes is the dense one under the plan; its FLOPs are those of the plan alone."""
    result = CliRunner().invoke(
        app, ["convert", str(fine_tuned / "base"), "--plan", str(fine_tuned / "mask.npy"), "-o", str(fine_tuned / "out")]
    )
    assert result.exit_code == 0, result.stderr
    plan = headmask_plan(MASK, Cuts(3, 1, 2), SIZES, (Grid(4, 4),))
    assert open_converted(fine_tuned / "out").plan == normalise(plan)
    dense, own = native_model(open_checkpoint(fine_tuned / "base"), torch.float32), load(fine_tuned / "out")
    inputs = tiny_inputs(dense.config, (3, 5), (1, 2), images=2)
    rows = inputs["attention_mask"].bool() & (inputs["input_ids"] != dense.config.image_token_id)
    with torch.inference_mode():
        torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(dense, inputs, plan)[rows], atol=1e-4, rtol=0)
        counts = [linear_flops_of(model, inputs) for model in (own, dense)]
    assert own.path_report().startswith("pruned: visual tokens leave after layer 1 of 2")
    assert counts[0] < 0.65 * counts[1]


def linear_flops_of(model: Any, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return sum(flops for operator, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(operator))


def test_a_fine_tuned_checkpoint_tells_its_plan_by_itself(fine_tuned: Path) -> None:
    command = ["convert", str(fine_tuned / "base"), "--plan", "config", "-o", str(fine_tuned / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "names a head mask by its number, 3, and does not hold it" in " ".join(result.stderr.split())
    file = fine_tuned / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"headcut_num": 0}))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert open_converted(fine_tuned / "out").plan == normalise(headmask_plan(np.ones_like(MASK), Cuts(3, 1, 2), SIZES, (Grid(4, 4),)))
    with pytest.raises(YopoError, match=r"config\.json has none of attncut_w"):
        config_headmask({"model_type": "llava"}, SIZES)
