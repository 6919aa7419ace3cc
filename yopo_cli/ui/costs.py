"""Costs in words and tables: the same figures for `convert`, `inspect` and their JSON."""

from converters.planning.prefill import PrefillCost

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count_text(count: float) -> str:
    """A count with a unit prefix, three digits: 7.63 T."""
    size, unit = next(((size, unit) for size, unit in UNITS if abs(count) >= size), (1.0, ""))
    number = count / size
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:.{digits}f} {unit}".rstrip() if unit else f"{number:.0f}"


def share_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}".replace("%", " %")


def cost_rows(costs: PrefillCost) -> list[tuple[str, str, float, float]]:
    """(what, unit, dense, pruned) for each of the four ways in which the same work is counted, and the KV cache."""
    flops = costs.flops
    with_text = f"visual + {flops.text_tokens} text"
    return [
        ("visual", "FLOPs", flops.visual_dense, flops.visual),
        ("visual", "multiply-adds", flops.visual_dense / 2, flops.visual / 2),
        (with_text, "FLOPs", flops.total_dense, flops.total),
        (with_text, "multiply-adds", flops.total_dense / 2, flops.total / 2),
        (f"KV cache, {with_text}", "bytes", costs.cache_dense, costs.cache),
    ]


def cost_table(costs: PrefillCost) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for the terminal."""
    rows: list[tuple[str, ...]] = [
        (what, unit, count_text(dense), count_text(pruned), share_text(pruned / dense)) for what, unit, dense, pruned in cost_rows(costs)
    ]
    return ("prefill", "counted in", "dense", "pruned", "share"), rows


def dense_table(costs: PrefillCost) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same for a model without a plan."""
    return ("prefill", "counted in", "dense"), [(what, unit, count_text(dense)) for what, unit, dense, _ in cost_rows(costs)]
