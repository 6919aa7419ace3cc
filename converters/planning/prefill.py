"""What a prefill costs, in all the ways of counting it, beside the dense model's."""

from dataclasses import dataclass, replace
from typing import Any

from ..runtime.plan import Plan, dense_plan
from .cost import Cost, cost, kv_cache_bytes

CACHE_BYTES_PER_VALUE = 2  # bfloat16 and float16


@dataclass(frozen=True)
class PrefillCost:
    """FLOPs of a prefill, and bytes of its K and V at two bytes a value, on the plan's reference grids."""

    flops: Cost
    cache: int
    cache_dense: int
    visual_tokens: int

    @classmethod
    def of(cls, plan: Plan) -> "PrefillCost":
        """What the plan's model costs."""
        flops = cost(plan)
        pruned = kv_cache_bytes(plan, plan.grids, flops.text_tokens, CACHE_BYTES_PER_VALUE)
        text = kv_cache_bytes(dense_plan(plan.sizes, plan.grids), (), flops.text_tokens, CACHE_BYTES_PER_VALUE)
        # The dense model keeps every visual token in every layer, although nothing reads what the last layer computes for them.
        return cls(flops, pruned, text * (flops.text_tokens + plan.visual_tokens) // flops.text_tokens, plan.visual_tokens)

    @classmethod
    def of_dense(cls, plan: Plan) -> "PrefillCost":
        """What the dense model costs on the plan's grids, which computes also what nothing reads."""
        pruned = cls.of(plan)
        flops = replace(pruned.flops, visual=pruned.flops.visual_dense, total=pruned.flops.total_dense)
        return replace(pruned, flops=flops, cache=pruned.cache_dense)

    def to_json(self, asked: float | None = None) -> dict[str, Any]:
        """`budget` (the one that was `asked` for, and the share that was reached), `flops`, `kv_cache_bytes` and tokens."""
        flops = self.flops
        return {
            "budget": {"asked": asked, "reached": flops.share},
            "flops": {
                "visual": flops.visual,
                "visual_dense": flops.visual_dense,
                "total": flops.total,
                "total_dense": flops.total_dense,
            },
            "kv_cache_bytes": {"pruned": self.cache, "dense": self.cache_dense},
            "visual_tokens": self.visual_tokens,
            "text_tokens": flops.text_tokens,
        }
