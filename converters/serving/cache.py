"""KV slots for text alone, in layers that have no K and V of visual tokens.

A block whose tokens are all visual is the pool's null block, which all requests share: what visual rows write there is always the same, a
hidden key and a value of zero, so that positions, lengths and block tables stay those of any other layer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from .slots import visual_blocks


@dataclass(frozen=True, kw_only=True)
class TextSlotsSpec(AttentionSpec):
    """What a layer keeps of text, and of visual tokens that share a block with some. A request may be all text."""

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        longest: int = vllm_config.model_config.max_model_len
        blocks: int = -(-longest // self.block_size)
        return blocks * int(self.page_size_bytes)


class TextSlotsManager(SingleTypeKVCacheManager):
    """Deals out blocks for groups of such layers.

    The prefix cache holds no null block: the pool's visual blocks are known by their hashes, which pictures are part of. What was
    forgotten is a miss, and computed anew.
    """

    _known: ClassVar[WeakKeyDictionary[BlockPool, OrderedDict[Any, None]]] = WeakKeyDictionary()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._visual: dict[str, frozenset[int]] = {}
        self._known.setdefault(self.block_pool, OrderedDict())

    def meet(self, request: Any) -> None:
        """Before blocks are dealt out to a request: which of its blocks are visual."""
        if request.request_id not in self._visual:
            spans = [span for feature in request.mm_features for span in feature.mm_position.extract_embeds_range()]
            self._visual[request.request_id] = visual_blocks(spans, self.block_size)

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[Any], *arguments: Any, **keywords: Any
    ) -> int:
        needed: int = super().get_num_blocks_to_allocate(request_id, num_tokens, new_computed_blocks, *arguments, **keywords)
        held = len(self.req_to_blocks.get(request_id, ())) + len(new_computed_blocks)
        missing = range(held, -(-num_tokens // self.block_size))
        return needed - sum(block in missing for block in self._visual.get(request_id, ()))

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[Any]:
        blocks, visual = self.req_to_blocks[request_id], self._visual[request_id]
        missing = range(len(blocks), -(-num_tokens // self.block_size))
        dealt = iter(self.block_pool.get_new_blocks(sum(block not in visual for block in missing)))
        new = [self._null_block if block in visual else next(dealt) for block in missing]
        blocks.extend(new)
        return new

    def cache_blocks(self, request: Any, num_tokens: int, *arguments: Any, **keywords: Any) -> None:
        done = self.num_cached_block.get(request.request_id, 0)
        super().cache_blocks(request, num_tokens, *arguments, **keywords)
        hashes = resolve_block_hashes(request.block_hashes, self.block_pool.hash_block_size, self.block_size)
        known = self._known[self.block_pool]
        for block in range(done, num_tokens // self.block_size):
            if block in self._visual[request.request_id]:
                known[hashes[block]] = None
                known.move_to_end(hashes[block])
        while len(known) > self.block_pool.num_gpu_blocks:
            known.popitem(last=False)

    def pop_blocks_for_free(self, request_id: str) -> list[Any]:
        self._visual.pop(request_id, None)
        blocks: list[Any] = super().pop_blocks_for_free(request_id)
        return blocks

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: Any,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[Any], ...], int]:
        """The blocks of each group that are in the cache, from the first on, and how many tokens they hold."""
        size, known = kv_cache_spec.block_size, cls._known[block_pool]
        hashes = resolve_block_hashes(block_hashes, block_pool.hash_block_size, size)
        found: list[list[Any]] = []
        for block_hash in islice(hashes, max_length // size):
            visual = [block_pool.null_block] * len(kv_cache_group_ids) if block_hash in known else None
            blocks = visual or block_pool.get_cached_block(block_hash, kv_cache_group_ids)
            if not blocks:
                break
            found.append(blocks)
        length = len(found) * size // alignment_tokens * alignment_tokens
        kept = found[: -(-length // size)]
        return tuple([blocks[group] for blocks in kept] for group in range(len(kv_cache_group_ids))), length


def register() -> None:
    """Make the spec known, and have managers meet requests: vLLM tells them no more than a request's name."""
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(TextSlotsSpec, TextSlotsManager)
    given = KVCacheManager.allocate_slots
    if getattr(given, "yopo", False):
        return

    def allocate_slots(self: Any, request: Any, *arguments: Any, **keywords: Any) -> Any:
        for manager in self.coordinator.single_type_managers:
            if isinstance(manager, TextSlotsManager):
                manager.meet(request)
        return given(self, request, *arguments, **keywords)

    allocate_slots.yopo = True  # type: ignore[attr-defined]
    KVCacheManager.allocate_slots = allocate_slots
