"""`yopo plan`: one search, the best plan for every budget."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.errors import YopoError
from converters.loading import Dtype
from converters.processes import joined, only_first

from ..ui.options import EFFORT, SAMPLES, Compensation, Device, DeviceMapOption, DtypeOption, EffortOption, For, Json, parse_grid
from ..ui.plot import check_plots, plot_frontier
from ..ui.progress import listening
from ..ui.terminal import say, show_json, show_table

if TYPE_CHECKING:
    from converters.planning.frontier import Frontier

BUDGETS = "0.5,0.25,0.12,0.06,0.04"
STATE_SUFFIX = ".search"


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="demo, a short name (llava-1.5-7b), a Hub id, a Hub id@revision, or a folder.")
    ],
    budgets: Annotated[str, typer.Option(help="Shares of the dense visual FLOPs to plan for, separated by commas.")] = BUDGETS,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Frontier to write (default: ./NAME-frontier.json).")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, max=1, help="Name the smallest budget that changes at most this share of unseen answers.")
    ] = None,
    plot: Annotated[
        list[Path] | None, typer.Option(help="Draw the frontier, PNG or SVG by the file's name; can be repeated. Needs yopo\\[plot].")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help='Questions to plan on: a JSONL file of {"image", "question"}, hub:OWNER/NAME (default: bundled).')
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions to plan on.")] = SAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are drawn.")] = 0,
    statistics: Annotated[Path | None, typer.Option(help="Reuse the statistics in this file, or write them there.")] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLUMNS", help="Visual grid that budgets are counted on (default: the samples').")
    ] = None,
    device: Device = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.AUTO,
    compensation: Annotated[
        Compensation, typer.Option(help="refit: plans are measured with K and V of visual tokens refitted, as `convert` then does.")
    ] = Compensation.REFIT,
    effort: EffortOption = EFFORT,
    engine: For = None,
    as_json: Json = False,
) -> None:
    """Search for the plans that change a model's answers least: one search, the best plan for every budget."""
    from converters.api import load, plan
    from converters.bundled import bundled_samples_for
    from converters.data.split import SampleSplit
    from converters.planner import answer_changes

    asked, reference, started = parse_budgets(budgets), parse_grid(grid), time.monotonic()
    check_plots(plot or ())
    with listening() as progress:
        opened = load(model, device=device, dtype=dtype, device_map=device_map)
        target = output or Path(f"{opened.name}-frontier.json")
        state = check_target(target)
        split = SampleSplit.of(calibration or bundled_samples_for(opened, progress), samples, seed)
        if max_drop is not None:
            split.check_unseen()
        refit = compensation is Compensation.REFIT
        with resumable(state):
            frontier = plan(
                opened, split, asked, seed=seed, statistics=statistics, grid=reference, refit=refit, effort=effort, served_by=engine,
                state=state, progress=progress,
            )  # fmt: skip
        if joined().first:
            frontier.save(target)
            state.unlink(missing_ok=True)
            plot_frontier(frontier, opened.name, plot or ())
        changes = {} if max_drop is None else answer_changes(opened, frontier, progress=progress)
        only_first()
    facts = {"unseen": split.unseen if changes else 0, "disk_bytes": progress.disk_bytes, "seconds": round(time.monotonic() - started, 3)}
    result = _result(opened.name, frontier, changes, max_drop) | facts | {"output": str(target)}
    if as_json:
        show_json(result)
    else:
        _show(result)


def parse_budgets(text: str) -> tuple[float, ...]:
    """`0.5,0.25` as numbers. Raises typer.BadParameter."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as {BUDGETS}.", param_hint="--budgets") from None
    if not all(0 < budget < 1 for budget in found):
        raise typer.BadParameter(f"{text!r} has a budget outside 0..1.", param_hint="--budgets")
    return found


def check_target(target: Path) -> Path:
    """The file beside a frontier that keeps an interrupted search. Raises YopoError where nothing can be written."""
    if not target.parent.is_dir():
        raise YopoError(f"The folder {target.parent} does not exist.", "The frontier is written to --output: make it first.")
    return target.with_name(target.name + STATE_SUFFIX)


@contextmanager
def resumable(state: Path) -> Iterator[None]:
    """Say after an interruption how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if state.exists():
            say(f"The same command goes on from here: {state} holds what has been measured.")
        raise


def _result(name: str, frontier: "Frontier", changes: dict[float, float], max_drop: float | None) -> dict[str, Any]:
    from converters.planner import smallest_budget
    from converters.planning.cost import cost

    points = [
        {
            "asked": point.asked,
            "reached": point.share,
            "reached_total": cost(point.plan).total_share,
            "logit_drift": point.logit_drift,
            "answer_changes": changes.get(point.asked or 0),
            "origin": point.origin,
        }
        for point in frontier.asked
    ]
    chosen = None if max_drop is None else smallest_budget(changes, max_drop)
    return {"model": name, "budgets": points, "chosen": chosen, "forwards": frontier.forwards, "samples": frontier.samples}


def _show(result: dict[str, Any]) -> None:
    columns = ("budget", "visual FLOPs", "total FLOPs", "logit drift", "answers changed", "found from")
    rows = [
        (
            f"{point['asked']:g}",
            f"{point['reached']:.2%}",
            f"{point['reached_total']:.2%}",
            f"{point['logit_drift']:.5f}",
            "-" if point["answer_changes"] is None else f"{point['answer_changes']:.2%}",
            point["origin"],
        )
        for point in result["budgets"]
    ]
    show_table(columns, rows)
    if result["chosen"] is not None:
        say(f"The smallest budget within the drop allowed: {result['chosen']:g}.")
    if result["unseen"]:
        say(f"Answers changed: of {result['unseen']} questions that the search did not see.")
    disk = f", {result['disk_bytes'] / 1e9:.1f} GB on disk at most" if result["disk_bytes"] else ""
    say(f"{result['forwards']:.0f} forward passes of {result['samples']} questions, {result['seconds']:.0f} s{disk}.")
    say(f"Wrote {result['output']}: `yopo convert --frontier` takes any budget from it at once.")
