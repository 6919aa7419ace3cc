"""A converted checkpoint in a process that has transformers and cannot import this project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from support.standalone import SCRIPT
from support.tiny import tiny_inputs, tiny_llava

from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.reader import open_checkpoint
from converters.checkpoint.source import resolve
from converters.evaluation.reference import masked_logits
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes


def test_loads_generates_and_saves_without_this_project(tmp_path: Path) -> None:
    model, config = tiny_llava(layers=3, heads=4)
    model.save_pretrained(tmp_path / "dense")
    everything = tuple(range(4))
    layers = (LayerPlan((0, 2, 3), (1, 2), (3, 4, 40), 3), LayerPlan(everything, (), (), None, 3), LayerPlan((1,), (), ()))
    plan = Plan(Sizes(32, 48, 3, 4, 4, 8), layers, (Grid(4, 4),))
    out = convert(open_checkpoint(tmp_path / "dense"), plan, tmp_path / "pruned", Provenance(resolve(str(tmp_path / "dense")), "test"))
    inputs = tiny_inputs(config, (3, 5), (1, 2))
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, out, tmp_path / "saved", tmp_path / "inputs.pt", tmp_path / "result.pt"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    found = torch.load(tmp_path / "result.pt")
    rows = inputs["attention_mask"].bool() & (inputs["input_ids"] != config.image_token_id)
    with torch.inference_mode():
        expected = masked_logits(model, inputs, plan)
    torch.testing.assert_close(found["logits"][rows], expected[rows], atol=1e-4, rtol=0)
    assert found["same"]
    assert found["info"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    assert found["path"].startswith("pruned: visual tokens leave after layer 3 of 3 and are updated in 1")
    assert found["tokens"].shape == (2, inputs["input_ids"].shape[1] + 4)
    written, saved = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "saved"))
    assert saved["yopo"] == written["yopo"]
