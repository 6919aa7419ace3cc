"""`yopo convert`: one model, one number, one pruned model."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.errors import YopoError
from converters.loading import Dtype
from converters.processes import joined

from ..ui.costs import cost_table, dense_table
from ..ui.options import (
    EFFORT,
    SAMPLES,
    Compensation,
    Device,
    DeviceMapOption,
    DtypeOption,
    EffortOption,
    For,
    Json,
    command_line,
    parse_grid,
)
from ..ui.picture import picture
from ..ui.progress import listening
from ..ui.terminal import show_json, show_table, show_text

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from converters.model import Model
    from converters.planning.frontier import Point
    from converters.runtime.plan import Plan


class Recipe(StrEnum):
    """How a plan is made: by measuring, or by name of `planning.recipes.RECIPES`."""

    AUTO = "auto"
    INTERLACED = "interlaced"
    YOPO = "yopo"
    SHORTV = "shortv"
    OPSKIP = "opskip"
    VICA = "vica"


def convert(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="demo, a short name (llava-1.5-7b), a Hub id, a Hub id@revision, or a folder.")
    ],
    budget: Annotated[
        float | None, typer.Option("--budget", "-b", help="Share of the dense visual FLOPs to keep, in (0, 1]; 1: only migrate.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write (default: ./NAME-yopo-BUDGET).")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Apply this plan (JSON), a published head mask (.npy) or what a fine-tuned checkpoint's config says (config)."),
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="With a head mask: side of the window that visual tokens see.")] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="With a head mask: layers that keep visual tokens.")] = None,
    ffn_ratio: Annotated[int | None, typer.Option(min=1, help="With a head mask: visual tokens use the first 1/RATIO neurons.")] = None,
    frontier: Annotated[Path | None, typer.Option(help="Take the budget's plan from this file of `yopo plan`; no search.")] = None,
    recipe: Annotated[
        Recipe, typer.Option(help="How the plan is made; auto: a measured search; interlaced: from statistics, at once; yopo: the paper's.")
    ] = Recipe.AUTO,
    compensation: Annotated[
        Compensation | None,
        typer.Option(
            help="refit: visual tokens get fitted K and V of their own (default: with auto, interlaced, and --plan with --calibration)."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help='Samples to calibrate on: a JSONL file of {"image", "question", "answer"?}, hub:OWNER/NAME (default: bundled).'),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples to use.")] = SAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Which samples are drawn.")] = 0,
    statistics: Annotated[Path | None, typer.Option(help="Reuse the statistics in this file, or write them there.")] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLUMNS", help="Visual grid that the budget is counted on (default: the samples').")
    ] = None,
    device: Device = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.AUTO,
    effort: EffortOption = EFFORT,
    engine: For = None,
    heal: Annotated[
        int | None, typer.Option(min=1, help="Then heal for so many steps on the --calibration file's questions (default: bundled).")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="First merge the LoRA adapter in this folder into MODEL; with --budget 1 that is all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; write no model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Prune a model: calibrate, plan for the budget, write a checkpoint that transformers loads."""
    cuts = {"window": window, "depth": depth, "ffn_ratio": ffn_ratio}
    options = {"--grid": grid, "--statistics": statistics, "--recipe": None if recipe is Recipe.AUTO else recipe}
    fits = heal is not None or compensation is not Compensation.NONE  # healing and refitting have use for questions, plan or not
    _check_combination(budget, plan, frontier, options | {"--calibration": None if fits else calibration})
    _check_repairs(compensation, heal, budget, dry_run)
    _check_cuts(plan, cuts)
    from converters.api import convert, load
    from converters.bundled import default_samples

    refit = None if compensation is None else compensation is Compensation.REFIT
    with listening() as progress:
        opened = load(model, device=device, dtype=dtype, device_map=device_map)
        chosen = _chosen(opened, budget, plan, frontier, cuts)
        done = convert(
            opened, chosen, output, samples=calibration or default_samples(opened, chosen, progress), count=samples, seed=seed,
            recipe=recipe.value, statistics=statistics, grid=parse_grid(grid), refit=refit, effort=effort, served_by=engine, heal=heal,
            adapter=adapter, dry_run=dry_run, force=force, command=command_line(context), progress=progress,
        )  # fmt: skip
    if as_json:
        show_json(done.to_json())
    else:
        _show(done, dry_run)


def _chosen(
    model: "Model", budget: float | None, plan: Path | None, frontier: Path | None, cuts: dict[str, int | None]
) -> "Plan | Point | float":  # fmt: skip
    """What is converted by: a plan from a file, one of a frontier, or the budget, for which one is made."""
    from converters.planner import plan_from
    from converters.planning.frontier import Frontier

    if plan is not None:
        return plan_from(model, plan, **cuts)
    assert budget is not None
    return budget if frontier is None else Frontier.load(frontier).at(budget)


def _check_combination(
    budget: float | None, plan: Path | None, frontier: Path | None, unused: dict[str, Any]
) -> None:  # fmt: skip
    """Raise what says that options contradict each other; `unused` are those that a finished plan has no use for."""
    if plan is None and budget is None:
        raise typer.BadParameter("give a budget, such as 0.25, or a plan.", param_hint="--budget / --plan")
    if plan is not None:
        unused = {"--budget": budget, "--frontier": frontier, **unused}
    if (plan or frontier) and (given := [name for name, value in unused.items() if value is not None]):
        name, what = ("--plan", "a plan") if plan else ("--frontier", "a frontier")
        raise typer.BadParameter(f"{what} is complete: {', '.join(given)} would do nothing.", param_hint=name)
    if budget is not None and not 0 < budget <= 1:
        raise YopoError(f"The budget is {budget:g}, which is not within 0..1.", "It is the kept share of the visual FLOPs, such as 0.25.")


def _check_repairs(compensation: Compensation | None, heal: int | None, budget: float | None, dry_run: bool) -> None:
    if budget == 1 and compensation is Compensation.REFIT:
        raise typer.BadParameter("there is nothing to make up for: nothing is pruned.", param_hint="--compensation")
    if heal is not None and (dry_run or budget == 1):
        raise typer.BadParameter("there is nothing to heal: no pruned model is written.", param_hint="--heal")
    if heal is not None and joined().count > 1:
        raise YopoError("convert --heal runs in one process.", "Convert first, then launch yopo heal in several.")


def _check_cuts(plan: Path | None, cuts: dict[str, int | None]) -> None:
    given = [_option(name) for name, value in cuts.items() if value is not None]
    if given and (plan is None or (plan.suffix != ".npy" and str(plan) != "config")):
        raise typer.BadParameter(f"{', '.join(given)} go with a head mask, such as --plan headmask.npy.", param_hint="--plan")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _show(done: "Conversion", dry_run: bool) -> None:
    if dry_run and done.plan is not None:
        show_text([*picture(done.plan), ""])
    show_table(*(dense_table(done.costs) if done.plan is None else cost_table(done.costs)))
    if not dry_run:
        show_text([f"Wrote {done.output}"])
