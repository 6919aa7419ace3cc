"""`yopo bench`: is it actually faster, on this machine?"""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.export.loading import Runtime
from converters.loading import Dtype

from ..ui.benchmark import EXPORT, ceiling_lines, export_rows, run_tables
from ..ui.options import AllowCpu, Device, DtypeOption, RuntimeOption
from ..ui.progress import listening
from ..ui.terminal import show_table, show_text

if TYPE_CHECKING:
    from converters.bench.benchmark import Bench


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL|OUT", help="A dense model, or a converted one: then its own plan is timed.")],
    budget: Annotated[
        list[float] | None, typer.Option("--budget", "-b", min=0, help="Kept share of dense visual FLOPs (default 0.25); may be repeated.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Plans made without calibration: interlaced, yopo (default: both); may be repeated.")
    ] = None,
    against: Annotated[str, typer.Option(help="Token pruners at equal visual FLOPs: fastv,divprune,dart,... (the guide lists them).")] = "",
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
        batch = max(_numbers(batch_sizes, "--batch-sizes"), default=1)
        _bench_export((model, text_tokens, batch, rounds, steps, threads, device, allow_cpu), as_json)
        return
    from converters.bench.benchmark import Bench, BenchRequest

    pruners, grids, batches = _words(against), _numbers(visual_tokens, "--visual-tokens"), _numbers(batch_sizes, "--batch-sizes")
    request = BenchRequest(
        model, tuple(budget or ()), tuple(recipe or ()), pruners, random_weights, layers, grids, text_tokens, batches, rounds, steps,
        tower, compiled, threads, device, dtype,
    )  # fmt: skip
    _bench(Bench(request), as_json)


def _bench(bench: "Bench", as_json: bool) -> None:
    """Every run is shown when it is there."""
    show_text([] if as_json else ceiling_lines(bench))
    runs = []
    with listening() as progress:
        for run in bench.runs(progress):
            runs.append(run)
            show_text([] if as_json else ["", run.title])
            for columns, rows in () if as_json else run_tables(run):
                show_table(columns, rows)
    show_text([json.dumps(bench.result(runs).to_json())])


def _refuse(options: dict[str, object]) -> None:
    """Raise typer.BadParameter for what an export has settled already."""
    if given := [name for name, value in options.items() if value]:
        raise typer.BadParameter(f"an export has its own plan, weights and format: leave out {', '.join(given)}.", param_hint="--runtime")


def _bench_export(asked: tuple[Any, ...], as_json: bool) -> None:
    from converters.bench.exports import ExportBenchRequest, bench_export

    with listening() as progress:
        found = bench_export(ExportBenchRequest(*asked), progress)
    if not as_json:
        show_text([found.path])
        show_table(EXPORT, export_rows(found.sides))
    show_text([json.dumps(found.to_json())])


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """`576,2304` as numbers. Raises typer.BadParameter."""
    words = _words(text)
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in words):
        raise typer.BadParameter(f"{text!r} is not a list of numbers, such as 576,2304.", param_hint=option)
    return tuple(map(int, words))
