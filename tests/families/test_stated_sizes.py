"""What config.json states is read without transformers, and is what transformers reads there."""

import json
import sys
from pathlib import Path

import pytest

import converters.bench
from converters.families import family_of
from converters.families.family import parsed as as_transformers_has_it
from converters.families.family import stated_sizes, text_sizes
from converters.loading import demo_folder
from converters.runtime.plan import Sizes

PUBLISHED = [*sorted((Path(converters.bench.__file__).parent / "configs").glob("*.json")), demo_folder() / "config.json"]
STATED = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_configs(file: Path, monkeypatch: pytest.MonkeyPatch):
    config = json.loads(file.read_text())
    family = family_of(config)
    parsed = text_sizes(as_transformers_has_it(config).text_config)
    if file.stem != "internvl2-4b":  # Phi-3 has a sliding window, which transformers judges
        monkeypatch.setitem(sys.modules, "transformers", None)
    assert family.sizes(config) == parsed
    assert family.grid(config).tokens > 0


def test_heads_share_the_hidden_size_where_none_is_stated():
    assert stated_sizes(STATED) == Sizes(64, 96, 3, 4, 2, 16)
    assert stated_sizes(STATED | {"head_dim": 8}) == Sizes(64, 96, 3, 4, 2, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen3"},  # whose heads are 128 wide whatever the hidden size
        {"num_key_value_heads": None},
        {"num_hidden_layers": "3"},
        {"num_attention_heads": 0},
        {"sliding_window": 4096},
        {"sliding_window": 4096, "use_sliding_window": True},
    ],
)
def test_what_transformers_has_to_fill_in_or_refuse(change: dict[str, object]):
    assert stated_sizes(STATED | change) is None


def test_a_window_that_is_switched_off():
    assert stated_sizes(STATED | {"sliding_window": 4096, "use_sliding_window": False}) == stated_sizes(STATED)
