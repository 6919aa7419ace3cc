"""What is no supported model is told in a sentence with a way out."""

import json
from pathlib import Path
from typing import Any

import pytest

from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError

QWEN = {
    "model_type": "qwen2_vl", "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 64, "vision_config": {"depth": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}, "vision_config": {}},
            r"The architecture qwen3_5 is not supported \(language model: qwen3_5_text\): three of four layers are linear attention",
        ),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}},
            r"The architecture gemma3 is not supported \(language model: gemma3_text\): tokens of a picture see each other in both",
        ),
        (
            {"model_type": "llava_next", "text_config": {"model_type": "phi3"}, "vision_config": {}},
            r"The architecture llava_next is not supported \(language model: phi3\)\.",
        ),
        (
            {"model_type": "internvl", "text_config": {"model_type": "mistral"}, "vision_config": {}},
            r"The architecture internvl is not supported \(language model: mistral\)\.",
        ),
        (
            {"model_type": "internvl", "text_config": {"model_type": "qwen3_moe"}, "vision_config": {}},
            r"The language model qwen3_moe is a mixture of experts\.",
        ),
        (
            {"model_type": "internvl_chat", "llm_config": {"model_type": "gpt_oss", "num_local_experts": 32}, "vision_config": {}},
            r"The language model gpt_oss is a mixture of experts\.",
        ),
        (
            {"model_type": "qwen3_vl_moe", "text_config": {"model_type": "qwen3_vl_moe_text", "num_experts": 128}, "vision_config": {}},
            r"The language model qwen3_vl_moe_text is a mixture of experts\.",
        ),
        ({"model_type": "llama"}, r"This model \(llama\) has no vision part\."),
        ({"architectures": ["MyModel"], "vision_config": {}}, r"The architecture MyModel is not supported\."),
        (QWEN | {"quantization_config": {"quant_method": "awq"}}, r"is quantised \(awq\): AWQ shares a scale among neighbouring inputs"),
        (QWEN | {"use_sliding_window": True, "sliding_window": 128}, r"A sliding window of 128 of 512 tokens is not supported\."),
    ],
    ids=[
        "Qwen3.5",
        "Gemma 3",
        "LLaVA-NeXT, Phi-3",
        "InternVL, Mistral",
        "InternVL3.5-30B-A3B",
        "InternVL3.5-GPT-OSS",
        "Qwen3-VL-30B-A3B",
        "text only",
        "no model type",
        "quantised",
        "sliding window",
    ],
)
def test_refusals(config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(YopoError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint
