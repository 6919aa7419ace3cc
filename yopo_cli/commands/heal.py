"""`yopo heal`: the projector learns back what pruning changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.healing.heal import BATCH_SIZE, STEPS, Tune
from converters.loading import Dtype

from ..ui.options import Device, DtypeOption, Json, command_line
from ..ui.progress import listening
from ..ui.terminal import say, show_json, show_table, show_text

if TYPE_CHECKING:
    from converters.healing.heal import Healing


def heal(
    context: typer.Context,
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
    from converters.api import heal, load
    from converters.healing.heal import state_folder

    opened = load(model, device=device, dtype=dtype)
    target = output or Path(f"{opened.name}-healed")
    try:
        with listening() as progress:
            healing = heal(
                opened, data, target, steps=steps, tune=tune, count=samples, seed=seed, batch_size=batch_size, micro_batch=micro_batch,
                learning_rate=learning_rate, recompute=recompute, answers=answers, force=force,
                command=command_line(context), progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        say(f"What was done is in {state_folder(target)}: the same command goes on there.")
        raise
    if as_json:
        show_json({**healing.to_json(), "model": model})
    else:
        _show(healing)


def _show(healing: "Healing") -> None:
    """What came of it, on stdout."""
    before, after = healing.divergence
    held_out = f"divergence on {healing.record['held_out']} held out"
    show_table((held_out, "nats a token"), [("before", f"{before:.6f}"), ("after", f"{after:.6f}")])
    if not healing.kept:
        say("Healing did not help: nothing was changed.")
    show_text([f"Wrote {healing.output}"])
