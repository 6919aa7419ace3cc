"""Converting a checkpoint on disk and holding what comes out against the model that it was made from."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.checkpoint.source import Source
from converters.evaluation.reference import masked_logits
from converters.runtime.plan import Grid
from converters.runtime.registration import register
from support.random_plans import random_plan
from support.standalone import SCRIPT

Inputs = tuple[dict[str, torch.Tensor], list[list[Grid]]]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [60, 61, 62, 63], "eos_token_id": -1}
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def provenance(folder: Path) -> Provenance:
    return Provenance(Source("tiny", folder), "yopo convert tiny")


def load(folder: Path) -> Any:
    """Nothing missing, nothing unexpected, nothing of another shape."""
    register()
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def text_rows(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs["attention_mask"].bool() & (inputs["input_ids"] < 60)


def assert_migrates(base: Path, model: Any, prompts: list[Inputs]) -> Path:
    """Unpruned, the checkpoint becomes the native model: the same parameters, logits and greedy tokens."""
    out = convert(open_checkpoint(base), None, base.parent / "native", provenance(base))
    native = load(out)
    assert type(native) is type(model)
    assert sum(tensor.numel() for tensor in native.parameters()) == sum(tensor.numel() for tensor in model.parameters())
    with torch.inference_mode():
        for inputs, _ in prompts:
            torch.testing.assert_close(native(**inputs).logits, model(**inputs).logits, **TOLERANCE)
            assert native.generate(**inputs, **GREEDY).equal(model.generate(**inputs, **GREEDY))
    return out


def assert_prunes(base: Path, model: Any, prompts: list[Inputs], seed: int) -> Path:
    """Under a random plan the converted checkpoint is the masked reference of the dense model; with the plan off, the dense model."""
    checkpoint = open_checkpoint(base)
    plan = random_plan(checkpoint.sizes, seed, (Grid(4, 4),))
    out = convert(checkpoint, plan, base.parent / f"pruned{seed}", provenance(base))
    assert open_converted(out).open_tensors().tensors.keys() == checkpoint.tensors.keys()
    own = load(out)
    with torch.inference_mode():
        for inputs, grids in prompts:
            rows = text_rows(inputs)
            torch.testing.assert_close(own(**inputs).logits[rows], masked_logits(model, inputs, plan, grids)[rows], **TOLERANCE)
            with own.dense():
                torch.testing.assert_close(own(**inputs).logits[rows], model(**inputs).logits[rows], **TOLERANCE)
    return out


def assert_stands_alone(out: Path, inputs: dict[str, torch.Tensor]) -> None:
    """It loads, generates and is saved again where this project cannot be imported."""
    folder = out.parent
    torch.save(inputs, folder / "inputs.pt")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, out, folder / "saved", folder / "inputs.pt", folder / "result.pt"],
        check=True,
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    found = torch.load(folder / "result.pt")
    own = load(out)
    with torch.inference_mode():
        torch.testing.assert_close(found["logits"], own(**inputs).logits, **TOLERANCE)
        assert found["tokens"].equal(own.generate(**inputs, max_new_tokens=4, do_sample=False))
    assert found["same"]
    assert found["info"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
