"""A pipeline whose model has an adapter merged into it first."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from support.checkpoints import save_model
from support.conversions import load

from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError
from converters.pipeline.file import read_pipeline
from converters.pipeline.steps import NOT_MADE, Forecast, Workshop
from converters.pipeline.subject import adapted, subject
from converters.progress import unheard


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks transformers by an older name
def test_it_is_merged_once_and_all_else_begins_with_what_came_of_it(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny")
    whole = get_peft_model(load(tmp_path / "tiny"), LoraConfig(r=2, target_modules=["gate_proj"], init_lora_weights=False))
    whole.save_pretrained(tmp_path / "lora")
    file = tmp_path / "ours.yaml"
    file.write_text("model: tiny\nadapter: lora\nbudgets: [0.5]\ncalibration: {data: demo}\nplan: {recipe: interlaced, for: vllm}\n")
    pipeline, dense = read_pipeline(file), subject(str(tmp_path / "tiny"), None, "auto")
    assert pipeline.parts.plan.served_by == "vllm"
    seen = Forecast(tmp_path / "out")
    before = adapted(pipeline, dense, seen, unheard)
    assert (before.name, before.sha256, [step.name for step, _ in seen.steps]) == ("tiny+lora", NOT_MADE, ["merge lora"])
    workshop = Workshop(tmp_path / "out", unheard)
    merged, again = (adapted(pipeline, dense, workshop, unheard) for _ in range(2))
    assert [outcome.skipped for outcome in workshop.outcomes] == [False, True]
    assert merged.sha256 == again.sha256 != dense.sha256
    weight = "model.language_model.layers.0.mlp.gate_proj.weight"
    assert not open_checkpoint(merged.model.path).read(weight).equal(open_checkpoint(dense.model.path).read(weight))
    assert adapted(pipeline, dense, Forecast(tmp_path / "out"), unheard).sha256 == merged.sha256
    file.write_text(file.read_text().replace("adapter: lora", "adapter: elsewhere"))
    with pytest.raises(YopoError, match="elsewhere is no folder"):
        adapted(read_pipeline(file), dense, workshop, unheard)
