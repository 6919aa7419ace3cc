"""`yopo heal`: the projector learns back what pruning changed."""

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.loading import Dtype, locate

from ..healing import BATCH_SIZE, STEPS, Request, Tune, heal_model, state_folder
from ..ui.options import Device, DtypeOption, Json
from ..ui.terminal import say, show_json, show_table, show_text


def heal(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A converted model.")],
    data: Annotated[
        Path, typer.Option(help='Questions to learn on, a JSONL file of {"image", "question"}; no answers; demo: the bundled.')
    ],
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = STEPS,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write (default: OUT-healed).")] = None,
    tune: Annotated[Tune, typer.Option(help="What learns.")] = Tune.PROJECTOR,
    samples: Annotated[int | None, typer.Option(min=2, help="Questions to use (default: all of a file, 3000 bundled ones).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are drawn and held out, and their order.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a step, over all processes.")] = BATCH_SIZE,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Questions at a time in each process (default: its share).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Peak of the cosine (default: 1e-4 where K and V are refitted, else 1e-3).")
    ] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Half the speed, far less memory: layers are computed twice.")] = False,
    answers: Annotated[
        Path | None, typer.Option(help="Folder of the dense model's answers, made or reused (default: beside the output).")
    ] = None,
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Heal a pruned model: its projector learns to make it answer as the dense model does. Text is touched by --tune language alone."""
    started = time.monotonic()
    source = locate(model)
    target = output or Path(f"{source.name}-healed")
    words = ["yopo", "heal", model, "--data", str(data), "--steps", str(steps)]
    words += [] if tune is Tune.PROJECTOR else ["--tune", tune.value]
    words += [] if samples is None else ["--samples", str(samples)]
    words += [] if seed == 0 else ["--seed", str(seed)]
    words += [] if batch_size == BATCH_SIZE else ["--batch-size", str(batch_size)]
    words += [] if learning_rate is None else ["--learning-rate", f"{learning_rate:g}"]
    words += [] if dtype is Dtype.AUTO else ["--dtype", dtype.value]
    request = Request(
        data, steps, tune, samples, seed, batch_size, micro_batch, learning_rate, recompute, answers, device, dtype, shlex.join(words)
    )
    try:
        record = heal_model(source.path, request, target, force)
    except KeyboardInterrupt:
        say(f"What was done is in {state_folder(target)}: the same command goes on there.")
        raise
    result = {"model": model, "output": str(target), **record, "total_seconds": round(time.monotonic() - started, 3)}
    show_healing(result, as_json)


def show_healing(result: dict[str, Any], as_json: bool) -> None:
    """What came of it, on stdout."""
    if as_json:
        show_json(result)
        return
    divergence = result["divergence"]
    rows = [("before", f"{divergence['before']:.6f}"), ("after", f"{divergence['after']:.6f}")]
    show_table((f"divergence on {result['held_out']} held out", "nats a token"), rows)
    if not result["kept"]:
        say("Healing did not help: nothing was changed.")
    show_text([f"Wrote {result['output']}"])
