"""vLLM's attention layers and backends, as the plugin changes them."""

from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform
from vllm.v1.attention.backend import subclass_attention_backend

from .cache import TextSlotsSpec
from .padded import PaddedAttention
from .projections import VisualProjections
from .runs import text_runs
from .work import LayerWork


class TextSlotsAttention(Attention):
    """An attention layer that keeps no slots for visual tokens."""

    def get_kv_cache_spec(self, vllm_config: Any) -> TextSlotsSpec:
        given = super().get_kv_cache_spec(vllm_config)
        same = ("block_size", "num_kv_heads", "head_size", "head_size_v", "dtype", "kv_quant_mode")
        return TextSlotsSpec(**{name: getattr(given, name) for name in same})


def widen(attention: Any, padded: int, work: LayerWork, hiding: bool, slotless: bool, config: Any) -> None:
    """Put an attention layer with heads of `padded` into the place of a decoder layer's own (`attention.attn`); `slotless`: without slots
    for visual tokens."""
    old = attention.attn
    if old.head_size != padded or slotless:
        del config.compilation_config.static_forward_context[old.layer_name]
        kind = TextSlotsAttention if slotless else Attention
        old = kind(
            old.num_heads,
            padded,
            attention.scaling,
            num_kv_heads=old.num_kv_heads,
            cache_config=config.cache_config,
            quant_config=config.quant_config,
            prefix=old.layer_name,
        )
    old.attn_backend = remembering(old.attn_backend)
    attention.attn = PaddedAttention(old, attention.head_dim, work, hiding)


@cache
def remembering(backend: Any) -> Any:
    """The backend, whose metadata remembers what it was built from, and has a second builder: a builder may keep buffers."""
    parent = backend.get_builder_cls()

    class Builder(parent):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._arguments = arguments, keywords
            self._other: Any = None

        def other(self) -> Any:
            if self._other is None:
                arguments, keywords = self._arguments
                self._other = parent(*arguments, **keywords)
            return self._other

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            made = super().build(common_prefix_len, common_attn_metadata, fast_build)
            made.yopo_built = self, common_attn_metadata
            return made

        def update_block_table(self, metadata: Any, blk_table: Tensor, slot_mapping: Tensor) -> Any:
            made = super().update_block_table(metadata, blk_table, slot_mapping)
            common = replace(metadata.yopo_built[1], block_table_tensor=blk_table, slot_mapping=slot_mapping)
            made.yopo_built = self, common
            return made

    return subclass_attention_backend("Yopo", backend, Builder)


def of_text(metadata: Any, visual: Tensor) -> Any:
    """The metadata of a step's text rows alone, from that of all rows; `visual` `[rows]` is on the CPU."""
    builder, common = metadata.yopo_built
    return builder.other().build(0, text_runs(common, visual))


def pack(projections: VisualProjections) -> None:
    """On a CPU, vLLM multiplies by weights that it has packed; so do visual rows. To be called once the weights are there."""
    if not current_platform.is_cpu():
        return
    for projection in projections.taken_whole():
        dispatch_cpu_unquantized_gemm(projection, remove_weight=True)
        packed: Any = projection.cpu_linear
        projection.multiply = packed
