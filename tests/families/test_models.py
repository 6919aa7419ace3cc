"""`yopo models`: figures known by hand, and the same as the families read from published configs."""

import json

import pytest
from typer.testing import CliRunner

from converters.families import family_of
from converters.families.names import MODELS, SHORT_NAMES
from yopo_cli.app import app

TOWER = {"patch_size": 14, "image_size": 336}
INTERNVIT = {"image_size": 448, "patch_size": 14}
CHAT = {"model_type": "internvl_chat", "ps_version": "v2", "downsample_ratio": 0.5, "select_layer": -1, "vision_config": INTERNVIT}


def llm(kind: str, hidden: int, ffn: int, layers: int, heads: int, kv: int) -> dict[str, object]:
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"model_type": kind, "num_key_value_heads": kv, "max_position_embeddings": 32768}


CONFIGS = {
    "llava-1.5-7b": {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": TOWER},
    "qwen2-vl-7b": llm("qwen2_vl", 3584, 18944, 28, 28, 4) | {"vision_config": {"patch_size": 14, "spatial_merge_size": 2}},
    "internvl2-4b": CHAT | {"llm_config": llm("phi3", 3072, 8192, 32, 32, 32)},
    "internvl2-8b": CHAT | {"llm_config": llm("internlm2", 4096, 14336, 32, 32, 8)},
    "qwen3-vl-4b": {
        "model_type": "qwen3_vl",
        "text_config": llm("qwen3_vl_text", 2560, 9728, 36, 32, 8) | {"head_dim": 128},
        "vision_config": {"patch_size": 16, "spatial_merge_size": 2},
    },
    "internvl3.5-8b": {
        "model_type": "internvl",
        "text_config": llm("qwen3", 4096, 12288, 36, 32, 8) | {"head_dim": 128},
        "vision_config": {name: [size, size] for name, size in INTERNVIT.items()},
    },
    "llava-1.6-mistral-7b": {
        "model_type": "llava_next",
        "text_config": llm("mistral", 4096, 14336, 32, 32, 8) | {"sliding_window": None},
        "vision_config": TOWER | {"model_type": "clip_vision_model"},
    },
    "llava-onevision-7b": {
        "model_type": "llava_onevision",
        "text_config": llm("qwen2", 3584, 18944, 28, 28, 4),
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
    },
    "internvl2-26b": CHAT | {"llm_config": llm("internlm2", 6144, 16384, 48, 48, 8)},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_facts_are_what_the_family_reads(name: str) -> None:
    config, model = CONFIGS[name], MODELS[name]
    family = family_of(config)
    assert (family.name, family.sizes(config), family.grids(config)) == (model.family, model.sizes, model.grids)


def test_the_paper_s_models_are_listed() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.stderr
    assert all(name in result.stdout and repository in result.stdout for name, repository in SHORT_NAMES.items())
    assert "7.63 T" in result.stdout
    assert "14.9 T" in result.stdout
    facts = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert facts["models"].keys() == SHORT_NAMES.keys()
    assert "Qwen2-VL" in facts["families"]
    assert facts["models"]["llava-1.5-13b"]["dense_visual_flops"] == pytest.approx(14.888e12, rel=1e-4)
