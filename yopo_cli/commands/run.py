"""`yopo run`: a pipeline from one file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..ui.costs import count_text
from ..ui.options import Json
from ..ui.progress import listening
from ..ui.terminal import GATE_FAILED, say, show_json, show_table, show_text

if TYPE_CHECKING:
    from converters.pipeline.run import Planned, Run

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def run(
    pipeline: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="What to make: model, budgets, healing, exports, gates, ...")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of all that is made (default: the file's `output`, else its name).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the steps, what is finished, sizes and times; do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Do what a pipeline's file says; finished steps are skipped, a killed run goes on. Exit with 3 if a gate fails."""
    if dry_run:
        _show_forecast(pipeline, output, as_json)
        return
    from converters.pipeline.run import run

    try:
        with listening() as progress:
            done = run(pipeline, output, progress=progress)
    except KeyboardInterrupt:
        say("Finished steps stay: the same command goes on here.")
        raise
    _summarise(done.summary)
    if as_json:
        show_json(done.to_json())
    else:
        _show(done)
    for gate in done.failed:
        say(f"Gate failed: {gate.sentence}.")
    if done.failed:
        raise typer.Exit(GATE_FAILED)


def _summarise(summary: Path) -> None:
    """The summary on the page of a workflow's run, where it is one of GitHub."""
    if page := os.environ.get(STEP_SUMMARY):
        with Path(page).open("a", encoding="utf-8") as file:
            file.write(summary.read_text(encoding="utf-8"))


def _show(done: "Run") -> None:
    show_table(("step", "seconds", ""), [(one.name, f"{one.seconds:.1f}", "skipped" if one.skipped else "done") for one in done.outcomes])
    if done.gates:
        rows = [
            (gate.model, gate.task, f"{gate.demand} {gate.limit:g}", "-" if gate.found is None else f"{gate.found:.4f}", _word(gate.passed))
            for gate in done.gates
        ]
        show_table(("model", "task", "gate", "found", ""), rows, numbers=False)
    show_text([f"Pushed to {one['repository']}@{one['revision']}, commit {one['commit'][:12]}" for one in done.pushed])
    show_text([f"Wrote {done.folder}"])


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"


def _show_forecast(pipeline: Path, output: Path | None, as_json: bool) -> None:
    from converters.pipeline.forecast import machine_rate
    from converters.pipeline.run import forecast

    steps = forecast(pipeline, output)
    rate = machine_rate(pipeline) if any(step.flops for step in steps) else 1.0
    hours = [None if step.flops is None or step.finished else step.flops / rate / 3600 for step in steps]
    if as_json:
        rows = [{**vars(step), "hours": one} for step, one in zip(steps, hours, strict=True)]
        show_json({"steps": rows, "flops_per_second": rate})
    else:
        show_table(("step", "", "bytes", "hours"), [_row(step, one) for step, one in zip(steps, hours, strict=True)])
        show_text([f"Hours are the language model's FLOPs at {count_text(rate)} a second, the best rate that was measured here now."])


def _row(step: "Planned", hours: float | None) -> tuple[str, ...]:
    size = "-" if step.bytes is None else count_text(step.bytes)
    return step.name, "finished" if step.finished else "to do", size, "-" if hours is None else f"{hours:.4f}"
