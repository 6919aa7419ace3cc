"""The evidence models: training rows are what the processors make of a chat, and the weights that are there answer."""

import sys
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.evidence import MODELS, available, folder
from benchmarks.evidence.architectures import save
from benchmarks.evidence.evaluate import accuracy
from benchmarks.evidence.students import inherit, student
from benchmarks.evidence.train import diet, pack, states_of, the_demo
from converters.checkpoint.reader import open_checkpoint
from converters.data.demo.shapes import draw
from converters.data.prompts import encode, prompt
from converters.loading import Dtype, load
from tools.demo.train import TRAINING_ATTENTION, shared_prefix_attention


@pytest.mark.parametrize("name", MODELS)
def test_training_rows_are_what_is_served(name: str, tmp_path: Path) -> None:
    AttentionInterface.register(TRAINING_ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(TRAINING_ATTENTION, sdpa_mask)
    learner = student(name, 0)
    inherit(learner, the_demo().model)
    save(learner.untrained, tmp_path)
    served = load(tmp_path, "cpu", Dtype.FLOAT32)
    learner.model.load_state_dict(served.model.state_dict())  # rounded to bfloat16
    learner.language.set_attn_implementation(TRAINING_ATTENTION)
    for pictures in diet(name, 4, 0):
        asked = pictures.questions.questions(pictures.scenes[0], Random(0), 1)
        text = pack(learner.untrained.tokenizer, [asked])
        words = text.segment[0] > 0
        inputs = encode(served.processor, [prompt(served.processor, asked[0].question, 1, asked[0].answer)], [draw(pictures.scenes[0])])
        with torch.inference_mode():
            states, prefix = states_of(learner, pictures.pixels[:1], text)
            trained = learner.model.lm_head(learner.language.norm(states[-1][0, prefix:][words]))
            expected = served.model(**inputs).logits[0, -len(trained) :]
        assert inputs["input_ids"][0, -len(trained) :].tolist() == text.tokens[0][words].tolist()
        torch.testing.assert_close(trained, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", available())
def test_trained_models_answer(name: str) -> None:
    checkpoint = open_checkpoint(folder(name))
    assert checkpoint.sizes.num_hidden_layers >= 8
    assert (folder(name) / "model.safetensors").stat().st_size < 5_000_000
    questions = MODELS[name][0]
    assert accuracy(folder(name), questions, 36, 0)["all"] > 0.6  # guessing is right about a quarter of the time
