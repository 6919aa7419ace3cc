"""`yopo eval`: what pruning did to the answers."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from converters.data.samples import BUNDLED
from converters.export.loading import Runtime
from converters.loading import Dtype

from ..ui.benchmarks import benchmark_tables, executed_lines
from ..ui.options import AllowCpu, Device, DeviceMapOption, DtypeOption, Json, RuntimeOption
from ..ui.progress import listening
from ..ui.terminal import GATE_FAILED, say, show_json, show_table, show_text

OWN_TEMPLATE = "checkpoint"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A converted model; of a dense one only the dense side is shown.")],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="demo, harder, sizes, a file of questions, or benchmarks: gqa,pope,mme=FOLDER; may be repeated."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Questions per task (default: 500 of a bundled set, all of a file).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens (default: 16, of a benchmark its own).")
    ] = None,
    min_retention: Annotated[
        float | None, typer.Option(min=0, help="Exit with 3 if a task keeps less than this share of the dense accuracy.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="How questions are put: checkpoint (its own template), or llava (as its published figures were made).")
    ] = OWN_TEMPLATE,
    against: Annotated[str, typer.Option(help="Token pruners to compare with at the same visual FLOPs: fastv,divprune,...")] = "",
    recipe: Annotated[str, typer.Option(help="Plans to compare with at the same visual FLOPs: yopo,shortv,interlaced,...")] = "",
    budget: Annotated[float | None, typer.Option(help="What --against and --recipe are compared at (default: OUT's own).")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Questions that --recipe is calibrated on (default: the bundled ones).")] = None,
    save: Annotated[Path | None, typer.Option(help="Write every answer to this JSONL file; a killed run goes on from it.")] = None,
    runtime: RuntimeOption = Runtime.TORCH,
    allow_cpu: AllowCpu = False,
    device: Device = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Json = False,
) -> None:
    """Compare the pruned model with the dense one on the same questions. The dense one is OUT with its plan switched off."""
    from converters.api import load
    from converters.evaluation.benchmarks import Evaluation, EvaluationRequest, evaluate_benchmarks, names_of

    started = time.monotonic()
    names = tuple(name for text in task or [BUNDLED] for name in names_of(text))
    request = EvaluationRequest(
        names, protocol, samples, seed, batch_size, max_new_tokens, _list(against), _list(recipe), budget, calibration, save=save,
        for_retention=min_retention is not None,
    )  # fmt: skip
    with listening() as progress:
        opened = load(model, device=device, dtype=dtype, runtime=runtime, allow_cpu=allow_cpu, device_map=device_map)
        results = evaluate_benchmarks(opened, request, progress)
    if as_json:
        show_json({**results, "seconds": round(time.monotonic() - started, 3)})
    else:
        for columns, rows in benchmark_tables(results):
            show_table(columns, rows)
            show_text([""])
        show_text(executed_lines(results))
    if min_retention is not None:
        _gate({name: Evaluation.of(name, one).retention for name, one in results["tasks"].items()}, min_retention)


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _gate(retentions: Mapping[str, float | None], least: float) -> None:
    """Exit with 3 if a task's retention is below `least`, or is not known because the dense model has nothing right."""
    failed = {name: retention for name, retention in retentions.items() if retention is None or retention < least}
    for name, retention in failed.items():
        outcome = "is unknown, the dense model has nothing right" if retention is None else f"is {retention:.4f}"
        say(f"Gate failed: the retention on {name} {outcome}, below {least:g}.")
    if failed:
        raise typer.Exit(GATE_FAILED)
