"""`yopo eval`: what pruning did to the answers."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.data.samples import BUNDLED
from converters.export.loading import Runtime
from converters.loading import Dtype

from ..ui.costs import share_text
from ..ui.options import AllowCpu, Device, DtypeOption, Json, RuntimeOption
from ..ui.progress import listening
from ..ui.terminal import GATE_FAILED, say, show_json, show_table

if TYPE_CHECKING:
    from converters.evaluation.evaluate import Evaluation
    from converters.evaluation.scores import Score

COLUMNS = ("task", "questions", "dense", "pruned", "retention", "changed")


def evaluate(
    model: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A converted model; of a dense one only the dense side is shown.")],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="demo, harder, sizes, or a JSONL file of {image, question, answer, kind?}; may be repeated."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Questions per task (default: 500 of a bundled set, all of a file).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 16,
    min_retention: Annotated[
        float | None, typer.Option(min=0, help="Exit with 3 if a task keeps less than this share of the dense accuracy.")
    ] = None,
    runtime: RuntimeOption = Runtime.TORCH,
    allow_cpu: AllowCpu = False,
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Json = False,
) -> None:
    """Compare the pruned model with the dense one on the same questions. The dense one is OUT with its plan switched off."""
    from converters.api import evaluate_tasks, load

    started = time.monotonic()
    asked: dict[str, Any] = {"count": samples, "seed": seed, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    with listening() as progress:
        opened = load(model, device=device, dtype=dtype, runtime=runtime, allow_cpu=allow_cpu)
        found = evaluate_tasks(opened, task or [BUNDLED], **asked, for_retention=min_retention is not None, progress=progress)
    if as_json:
        tasks = {name: evaluation.to_json() for name, evaluation in found.items()}
        path = next(iter(found.values())).path
        show_json({"model": model, "path": path, "tasks": tasks, "seconds": round(time.monotonic() - started, 3)})
    else:
        show_table(COLUMNS, _rows(found))
    if min_retention is not None:
        _gate(found, min_retention)


def _rows(evaluations: dict[str, "Evaluation"]) -> Iterator[tuple[str, ...]]:
    for name, evaluation in evaluations.items():
        yield _row(name, evaluation.score)
        for kind, score in evaluation.kinds.items():
            yield _row(f"  {kind}", score)


def _row(name: str, score: "Score") -> tuple[str, ...]:
    shares = (score.dense, score.pruned, score.retention, score.answer_flips)
    return name, str(score.samples), *map(share_text, shares)


def _gate(evaluations: dict[str, "Evaluation"], least: float) -> None:
    """Exit with 3 if a task's retention is below `least`, or is not known because the dense model has nothing right."""
    retentions = {name: evaluation.retention for name, evaluation in evaluations.items()}
    failed = {name: retention for name, retention in retentions.items() if retention is None or retention < least}
    for name, retention in failed.items():
        found = "is unknown, the dense model has nothing right" if retention is None else f"is {retention:.4f}"
        say(f"Gate failed: the retention on {name} {found}, below {least:g}.")
    if failed:
        raise typer.Exit(GATE_FAILED)
