"""Costs in words and tables: the same figures for `convert`, `inspect` and their JSON."""

from dataclasses import dataclass, replace
from typing import Any

from converters.planning.cost import Cost, cost, kv_cache_bytes
from converters.runtime.plan import Plan, dense_plan

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
CACHE_BYTES_PER_VALUE = 2  # bfloat16 and float16


def count_text(count: float) -> str:
    """A count with a unit prefix, three digits: 7.63 T."""
    size, unit = next(((size, unit) for size, unit in UNITS if abs(count) >= size), (1.0, ""))
    number = count / size
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:.{digits}f} {unit}".rstrip() if unit else f"{number:.0f}"


def share_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}".replace("%", " %")


@dataclass(frozen=True)
class Bill:
    """What a prefill costs: FLOPs, and bytes of K and V at two bytes a value, pruned and dense, on the plan's reference grids."""

    spent: Cost
    cache: int
    cache_dense: int
    visual_tokens: int


def bill(plan: Plan) -> Bill:
    """The cost of a plan."""
    spent = cost(plan)
    pruned = kv_cache_bytes(plan, plan.grids, spent.text_tokens, CACHE_BYTES_PER_VALUE)
    text = kv_cache_bytes(dense_plan(plan.sizes, plan.grids), (), spent.text_tokens, CACHE_BYTES_PER_VALUE)
    # The dense model keeps every visual token in every layer, although nothing reads what the last layer computes for them.
    return Bill(spent, pruned, text * (spent.text_tokens + plan.visual_tokens) // spent.text_tokens, plan.visual_tokens)


def dense_bill(plan: Plan) -> Bill:
    """The cost of the dense model on the plan's grids, which computes also what nothing reads."""
    pruned = bill(plan)
    spent = replace(pruned.spent, visual=pruned.spent.visual_dense, total=pruned.spent.total_dense)
    return replace(pruned, spent=spent, cache=pruned.cache_dense)


def cost_rows(costs: Bill) -> list[tuple[str, str, float, float]]:
    """(what, unit, dense, pruned) for each of the four ways in which the same work is counted, and the KV cache."""
    spent = costs.spent
    with_text = f"visual + {spent.text_tokens} text"
    return [
        ("visual", "FLOPs", spent.visual_dense, spent.visual),
        ("visual", "multiply-adds", spent.visual_dense / 2, spent.visual / 2),
        (with_text, "FLOPs", spent.total_dense, spent.total),
        (with_text, "multiply-adds", spent.total_dense / 2, spent.total / 2),
        (f"KV cache, {with_text}", "bytes", costs.cache_dense, costs.cache),
    ]


def cost_table(costs: Bill) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for the terminal."""
    rows: list[tuple[str, ...]] = [
        (what, unit, count_text(dense), count_text(pruned), share_text(pruned / dense)) for what, unit, dense, pruned in cost_rows(costs)
    ]
    return ("prefill", "counted in", "dense", "pruned", "share"), rows


def dense_table(costs: Bill) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same for a model without a plan."""
    return ("prefill", "counted in", "dense"), [(what, unit, count_text(dense)) for what, unit, dense, _ in cost_rows(costs)]


def cost_json(costs: Bill, asked: float | None) -> dict[str, Any]:
    """`budget`, `flops` and `kv_cache_bytes`."""
    spent = costs.spent
    return {
        "budget": {"asked": asked, "reached": spent.share},
        "flops": {
            "visual": spent.visual,
            "visual_dense": spent.visual_dense,
            "total": spent.total,
            "total_dense": spent.total_dense,
        },
        "kv_cache_bytes": {"pruned": costs.cache, "dense": costs.cache_dense},
        "visual_tokens": costs.visual_tokens,
        "text_tokens": spent.text_tokens,
    }
