"""`yopo bench`: is it actually faster, on this machine?"""

from typing import Annotated

import typer

from converters.export.loading import Runtime
from converters.loading import Dtype

from ..export_bench import Asked as ExportAsked
from ..ui.options import AllowCpu, Device, DtypeOption, RuntimeOption
from ..ui.terminal import say, show_table, show_text


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL|OUT", help="A dense model, or a converted one: then its own plan is timed.")],
    budget: Annotated[
        list[float] | None, typer.Option("--budget", "-b", min=0, help="Kept share of dense visual FLOPs (default 0.25); may be repeated.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Plans made without calibration: interlaced, yopo (default: both); may be repeated.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="Token pruners at equal visual FLOPs: fastv,pyramiddrop,sparsevlm,visionzip,divprune,downsample,random.")
    ] = "",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Random weights from config.json alone: no download for a short name.")
    ] = False,
    layers: Annotated[int | None, typer.Option(min=2, help="Decoder layers, to time a part of a model too large for this machine.")] = None,
    visual_tokens: Annotated[str, typer.Option(help="Visual tokens, such as 576,2304,9216 (default: the model's own).")] = "",
    text_tokens: Annotated[int, typer.Option(min=2, help="Text tokens of the prompt.")] = 64,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Prefills of each side.")] = 5,
    steps: Annotated[int, typer.Option(min=0, help="Decoded tokens of each side.")] = 8,
    tower: Annotated[bool, typer.Option(help="Time the vision tower too, where the grid is the model's own.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Run the prefills of dense and pruned models under torch.compile.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: PyTorch's).")] = None,
    runtime: RuntimeOption = Runtime.TORCH,
    allow_cpu: AllowCpu = False,
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line on stdout.")] = False,
) -> None:
    """Time the pruned model against the dense one and against token pruners, in turns in one process, beside what the machine can do.

    The tables end with one JSON line.
    """
    if runtime is Runtime.ONNX:
        plans = {"--budget": budget, "--recipe": recipe, "--against": against, "--layers": layers, "--visual-tokens": visual_tokens}
        _refuse({**plans, "--random-weights": random_weights, "--dtype": dtype is not Dtype.AUTO})
        sizes = _numbers(batch_sizes, "--batch-sizes")
        _bench_export(ExportAsked(model, text_tokens, max(sizes, default=1), rounds, steps, threads, device, allow_cpu), as_json)
        return
    from ..benchmark import Asked, Bench, bench_lines, bench_record

    pruners, grids, batches = _words(against), _numbers(visual_tokens, "--visual-tokens"), _numbers(batch_sizes, "--batch-sizes")
    asked = Asked(
        model, tuple(budget or ()), tuple(recipe or ()), pruners, random_weights, layers, grids, text_tokens, batches, rounds, steps,
        tower, compiled, threads, device, dtype,
    )  # fmt: skip
    bench = Bench(asked)
    if not as_json:
        show_text(bench.ceiling_lines())
    for run in bench.runs(say):
        if not as_json:
            show_text(["", run.title])
            for columns, rows in bench_lines(run):
                show_table(columns, rows)
    show_text(bench_record(bench))


def _refuse(options: dict[str, object]) -> None:
    """Raise typer.BadParameter for what an export has settled already."""
    if given := [name for name, value in options.items() if value]:
        raise typer.BadParameter(f"an export has its own plan, weights and format: leave out {', '.join(given)}.", param_hint="--runtime")


def _bench_export(asked: ExportAsked, as_json: bool) -> None:
    from ..export_bench import COLUMNS, bench_export, bench_text, export_rows

    record = bench_export(asked, say)
    if not as_json:
        show_text([record["path"]])
        show_table(COLUMNS, export_rows(record))
    show_text([bench_text(record)])


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """`576,2304` as numbers. Raises typer.BadParameter."""
    words = _words(text)
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"{text!r} is not a list of numbers, such as 576,2304.", param_hint=option)
    return tuple(map(int, words))
