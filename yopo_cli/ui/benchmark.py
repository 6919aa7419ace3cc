"""A benchmark's figures in tables. Each fits 80 columns."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .costs import count_text

if TYPE_CHECKING:
    from converters.bench.benchmark import Bench, BenchmarkRun
    from converters.bench.measure import Figures

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def ceiling_lines(bench: "Bench") -> Iterator[str]:
    """What this machine can do at best."""
    found = bench.result(())
    threads = f", {found.threads} threads" if found.device == "cpu" else ""
    size = f"{found.sizes.num_hidden_layers} layers of {found.sizes.hidden_size}"
    yield f"{found.request.model}: {size}; {found.device}, {found.dtype}{threads}"
    rate, speed = count_text(found.ceiling.flops_per_second), count_text(found.ceiling.bytes_per_second)
    yield f"ceiling, measured: matrix products {rate}FLOP/s, memory {speed}B/s"


def run_tables(run: "BenchmarkRun") -> Iterator[Table]:
    """The prefill beside its FLOPs and its bound, rates and the vision tower, decoding, memory."""
    yield PREFILL, [_prefill_row(one) for one in run.figures]
    yield RATES, [_rate_row(one) for one in run.figures]
    yield DECODE, [_decode_row(one) for one in run.figures]
    notes: list[tuple[str, ...]] = [(_label(one), one.note) for one in run.figures if one.note not in ("", "as published")]
    if notes:
        yield ("moved", "from what is published"), notes


PREFILL = ("prefill", "visual", "total", "seconds", "of dense", "FLOPs/time", "of bound")
RATES = ("with vision tower", "TTFT s", "of dense", "spread", "tokens/s", "peak", "predicted")
DECODE = ("decoding", "TPOT ms", "of dense", "of bound", "KV predicted", "measured", "share")


def _prefill_row(one: "Figures") -> tuple[str, ...]:
    time = one.prefill
    return (
        _label(one),
        f"{one.visual_share:.4f}",
        f"{one.total_share:.4f}",
        f"{time.seconds:.3f}",
        f"{time.ratio:.4f}",
        f"{one.efficiency:.3f}",
        f"{time.seconds / time.least:.2f}x" if time.least else "-",
    )


def _rate_row(one: "Figures") -> tuple[str, ...]:
    first = one.ttft
    return (
        _label(one),
        f"{first.seconds:.3f}" if first else "-",
        f"{first.ratio:.4f}" if first else "-",
        f"{one.prefill.spread:.1%}",
        f"{one.tokens_per_second:.0f}",
        *("-" if size is None else count_text(size) + "B" for size in (one.peak_bytes, one.peak_predicted)),
    )


def _decode_row(one: "Figures") -> tuple[str, ...]:
    step = one.decode
    return (
        _label(one),
        f"{1000 * step.seconds:.2f}" if step else "-",
        f"{step.ratio:.4f}" if step else "-",
        f"{step.seconds / step.least:.2f}x" if step and step.least else "-",
        count_text(one.kv_bytes_predicted) + "B",
        count_text(one.kv_bytes) + "B",
        f"{one.kv_share:.4f}",
    )


def _label(one: "Figures") -> str:
    return one.name if one.budget is None else f"{one.name} {one.budget:g}"


EXPORT = ("prefill", "total", "seconds", "of dense", "FLOPs/time", "spread", "decoding ms", "of dense")


def export_rows(sides: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The sides of an export's benchmark as rows under EXPORT."""
    for one in sides:
        prefill, decode = one["prefill"], one["decode"]
        yield (
            one["side"],
            f"{one['total_share']:.4f}",
            f"{prefill['seconds']:.3f}",
            f"{prefill['ratio']:.4f}",
            f"{prefill['efficiency']:.3f}",
            f"{prefill['spread']:.1%}",
            f"{1000 * decode['seconds']:.2f}" if decode else "-",
            f"{decode['ratio']:.3f}" if decode else "-",
        )
