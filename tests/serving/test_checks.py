"""What is refused, in a sentence that names what is in the way."""

from dataclasses import replace
from typing import Any

import pytest

from converters.errors import YopoError
from converters.families import FAMILIES
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise
from converters.serving.checks import SERVED, EngineFacts, check_engine, check_family, check_served, padded_head_size, summary
from converters.serving.work import layer_works

SIZES = Sizes(8, 12, 3, 4, 2, 2)
DENSE = dense_plan(SIZES, (Grid(2, 2),))
FACTS = EngineFacts("0.32.0", "LlamaForCausalLM", "CPU_ATTN", (32, 64, 80))


def each(**changes: Any) -> Plan:
    return normalise(replace(DENSE, layers=tuple(replace(layer, **changes) for layer in DENSE.layers)))


def test_windows_are_not_served() -> None:
    windowed = replace(DENSE, layers=(DENSE.layers[0], replace(DENSE.layers[1], window=5), DENSE.layers[2]))
    with pytest.raises(YopoError, match="the plan's window is 5 in layers 1"):
        check_served(windowed)
    check_served(DENSE)


def test_families_that_are_not_served() -> None:
    """Every family is served or refused; a class serves each architecture that is said to be served."""
    served = [family for family in FAMILIES if family.yopo_architecture in SERVED]
    assert {family.yopo_architecture for family in served} == SERVED.keys()
    for family in served:
        check_family(family)
    with pytest.raises(YopoError, match="vLLM's plugin does not serve LLaVA-NeXT") as refused:
        check_family(next(family for family in FAMILIES if family.model_type == "llava_next"))
    assert "LLaVA-1.5, Qwen2-VL, Qwen2.5-VL" in str(refused.value.hint)


REFUSED = {
    "vLLM 0.33.1; yopo serves in 0.32": {"version": "0.33.1"},
    "language model Phi3ForCausalLM": {"text_model": "Phi3ForCausalLM"},
    "tensor_parallel_size 2": {"tensor_parallel_size": 2},
    "pipeline_parallel_size 4": {"pipeline_parallel_size": 4},
    "context_parallel_size 2": {"context_parallel_size": 2},
    "micro-batches": {"micro_batches": True},
    "LoRA": {"lora": True},
    "speculative decoding": {"speculative": True},
    "other engines": {"kv_transfer": True},
    "video tokens dropped": {"video_pruning": True},
    "FLEX writes K and V together": {"backend": "FLEX", "separate_cache_update": False},
    "KV cache of type fp8": {"kv_cache_dtype": "fp8"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_engines_that_are_refused(message: str) -> None:
    with pytest.raises(YopoError, match=message) as refused:
        check_engine(replace(FACTS, **REFUSED[message]))
    assert refused.value.hint


def test_an_engine_as_it_is_by_default() -> None:
    check_engine(FACTS)


def test_heads_are_as_wide_as_they_must_be() -> None:
    reading, unread = layer_works(each(self_heads=())), layer_works(each(read_heads=(0, 1)))
    assert padded_head_size(reading, 32, FACTS) == 32
    assert padded_head_size(reading, 16, FACTS) == 32
    assert padded_head_size(unread, 32, FACTS) == 64
    assert padded_head_size(unread, 78, FACTS) == 80
    with pytest.raises(YopoError, match=r"read_heads and read_stride hide visual tokens in layers 0-2, .* heads of 82; .* none above 80"):
        padded_head_size(unread, 80, FACTS)
    with pytest.raises(YopoError, match="no heads of 81"):
        padded_head_size(reading, 81, FACTS)


def test_the_log_says_what_is_skipped() -> None:
    layers = (DENSE.layers[0], replace(DENSE.layers[1], self_heads=(), neurons=()), LayerPlan((), (), ()))
    works = layer_works(Plan(SIZES, layers, DENSE.grids))
    text = "visual tokens have K and V in 2 of 3 layers and are updated by self attention in 1 and FFN in 1, frozen in 2; their KV slots "
    assert summary(works, 2, 2, 1) == text + "are kept in 2 layers"
    assert "kept in 3 layers; heads of 2 take 32" in summary(works, 2, 32, 0)
