"""Costs in words and tables: the same figures for `convert`, `inspect` and their JSON."""

from typing import Any

from converters.planning.cost import cost, kv_cache_bytes
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


def cost_rows(plan: Plan) -> list[tuple[str, float, float, str]]:
    """(what, dense, pruned, unit) for each of the four ways in which the same work is counted, and the KV cache."""
    spent = cost(plan)
    with_text = f"visual + {spent.text_tokens} text"
    return [
        ("visual", spent.visual_dense, spent.visual, "FLOPs"),
        ("visual", spent.visual_dense / 2, spent.visual / 2, "multiply-adds"),
        (with_text, spent.total_dense, spent.total, "FLOPs"),
        (with_text, spent.total_dense / 2, spent.total / 2, "multiply-adds"),
        (f"KV cache, {with_text}", *_cache(plan, spent.text_tokens), "bytes"),
    ]


def cost_table(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the costs for the terminal."""
    rows: list[tuple[str, ...]] = [
        (what, unit, count_text(dense), count_text(pruned), share_text(pruned / dense if dense else None))
        for what, dense, pruned, unit in cost_rows(plan)
    ]
    return ("prefill", "counted in", "dense", "pruned", "share"), rows


def cost_json(plan: Plan, asked: float | None) -> dict[str, Any]:
    """`budget`, `flops` and `kv_cache_bytes` of a plan."""
    spent = cost(plan)
    dense, pruned = _cache(plan, spent.text_tokens)
    return {
        "budget": {"asked": asked, "reached": spent.share},
        "flops": {
            "visual": spent.visual,
            "visual_dense": spent.visual_dense,
            "total": spent.total,
            "total_dense": spent.total_dense,
        },
        "kv_cache_bytes": {"pruned": pruned, "dense": dense, "visual_tokens": plan.visual_tokens, "text_tokens": spent.text_tokens},
    }


def _cache(plan: Plan, text_tokens: int) -> tuple[int, int]:
    """Bytes of K and V, dense and pruned. Every visual token of every layer is in the dense one, although the last is not read."""
    pruned = kv_cache_bytes(plan, plan.grids, text_tokens, CACHE_BYTES_PER_VALUE)
    text = kv_cache_bytes(dense_plan(plan.sizes, plan.grids), (), text_tokens, CACHE_BYTES_PER_VALUE)
    return text * (text_tokens + plan.visual_tokens) // text_tokens, pruned
