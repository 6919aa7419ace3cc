"""`yopo convert`: one model, one number, one pruned model."""

import gc
import shlex
import time
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.bench.process_memory import PeakMemory
from converters.data.examples import BUNDLED
from converters.errors import YopoError
from converters.loading import Dtype, locate
from converters.planning.cost import cost
from converters.processes import joined, only_first
from converters.runtime.plan import Grid, Plan, dense_plan, factored, to_json

from ..calibration import Calibration, statistics_of
from ..healing import Request as HealingRequest
from ..healing import heal_model
from ..ui.costs import Bill, bill, cost_json, cost_table, dense_bill, dense_table
from ..ui.options import SAMPLES, Compensation, Device, DtypeOption, Json, parse_grid, read_plan
from ..ui.picture import picture
from ..ui.searching import saved_frontier, searched
from ..ui.terminal import byte_bar, say, show_json, show_table, show_text

HEADMASK, OWN = ".npy", Path("config")


class Recipe(StrEnum):
    """How a plan is made: by measuring, or by name of `planning.recipes.RECIPES` and `planning.presets.PRESETS`."""

    AUTO = "auto"
    INTERLACED = "interlaced"
    YOPO = "yopo"
    SHORTV = "shortv"
    OPSKIP = "opskip"
    VICA = "vica"


REFITTED = (Recipe.AUTO, Recipe.INTERLACED)
"""Recipes whose plans come with refits unless told otherwise; the others are what others do."""


def convert(
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
            help="refit: visual tokens get fitted K and V of their own (default: with the recipes auto and interlaced, and a plan with --calibration)."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help='Samples to calibrate on, a JSONL file of {"image", "question", "answer"?} (default: bundled).')
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples to use.")] = SAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Which samples are drawn.")] = 0,
    statistics: Annotated[Path | None, typer.Option(help="Reuse the statistics in this file, or write them there.")] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLUMNS", help="Visual grid that the budget is counted on (default: the samples').")
    ] = None,
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    heal: Annotated[
        int | None, typer.Option(min=1, help="Then heal for so many steps on the --calibration file's questions (default: bundled).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; write no model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Prune a model: calibrate, plan for the budget, write a checkpoint that transformers loads."""
    reference = parse_grid(grid)
    finished = plan is not None or frontier is not None
    usual = calibration is not None if plan is not None else recipe in REFITTED
    refit = compensation is Compensation.REFIT or (compensation is None and usual)
    used = calibration if heal is None and not refit else None  # healing and refitting have use for it, plan or not
    _check_combination(budget, plan, frontier, {"--grid": grid, "--calibration": used, "--statistics": statistics if finished else None})
    _check_repairs(compensation, heal, budget, dry_run)
    cuts = {"window": window, "depth": depth, "ffn_ratio": ffn_ratio}
    _check_cuts(plan, cuts)
    started = time.monotonic()
    with PeakMemory() as memory, ExitStack() as room:
        source = locate(model)
        from converters.checkpoint.convert import Provenance, check_output, check_plan
        from converters.checkpoint.folder import scratch
        from converters.checkpoint.reader import open_checkpoint

        checkpoint = open_checkpoint(source.path)
        read = None if plan is None else check_plan(_read(plan, cuts, checkpoint), checkpoint.sizes)
        target = output or _default_output(source.name, budget, read)
        if not dry_run:
            check_output(target, force)
        request = Calibration(calibration, samples, seed, statistics, device, dtype)
        questions = _Questions(source, request)
        if read or budget == 1:
            decided, facts = read, None
        else:
            decided, facts, found_so = _planned(checkpoint, questions, recipe, frontier, reference, budget, refit)
            refit = refit if compensation else found_so
        refit = refit or (compensation is None and decided is not None and bool(factored(decided)))
        refits = {} if decided is None or dry_run or not refit else questions.refits(decided)
        command = _command(
            model, budget, plan, frontier, cuts, recipe, compensation, calibration, samples, seed, statistics, grid, dtype
        )  # fmt: skip
        questions.free()
        only_first()
        written = target if heal is None else room.enter_context(scratch(target)) / target.name
        if not dry_run:
            named, fitted_on = None if facts is None else recipe.value, questions.count if refits else None
            _write(
                checkpoint,
                decided,
                refits,
                written,
                Provenance(source, command, budget, named, facts, fitted_on),
                force,
            )
        healing = room.pop_all()
    result = _result(checkpoint, decided, budget, source.name, facts)
    result |= {"seconds": round(time.monotonic() - started, 3), "peak_memory_bytes": memory.bytes}
    result |= {"output": None if dry_run else str(target), "compensation": None if dry_run else _compensation(written)}
    if heal is not None:
        data, told = calibration or Path(BUNDLED), f"{command} --heal {heal}"
        with healing:
            asked = HealingRequest(data, heal, seed=seed, device=device, dtype=dtype, command=told)
            result["healing"] = heal_model(written, asked, target, force)
    _show(result, checkpoint, decided, dry_run, as_json)


def _check_combination(budget: float | None, plan: Path | None, frontier: Path | None, unused: dict[str, Any]) -> None:
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
    given = [f"--{name.replace('_', '-')}" for name, value in cuts.items() if value is not None]
    if given and (plan is None or (plan.suffix != HEADMASK and plan != OWN)):
        raise typer.BadParameter(f"{', '.join(given)} go with a head mask, such as --plan headmask.npy.", param_hint="--plan")


def _read(plan: Path, cuts: dict[str, int | None], checkpoint: Any) -> Plan:
    """The plan in a file; a head mask with these cuts, where none are given with those in the checkpoint's own config.json."""
    if plan.suffix != HEADMASK and plan != OWN:
        return read_plan(plan)
    from converters.checkpoint.reader import read_config
    from converters.planning.headmask import Cuts, headmask_plan, own_headmask, read_headmask

    config = read_config(checkpoint.path)
    asked = Cuts(**cuts).filled(Cuts.of(config))
    mask = own_headmask(config, checkpoint.sizes) if plan == OWN else read_headmask(plan)
    return headmask_plan(mask, asked, checkpoint.sizes, (checkpoint.grid,))


class _Questions:
    """The questions that are planned and fitted on, with their model: loaded when first asked for, and once."""

    def __init__(self, source: Any, request: Calibration) -> None:
        self.source, self.request = source, request
        self.count = 0
        self._loaded: Any = None

    @property
    def loaded(self) -> Any:
        from converters.data.questions import Questions

        if self._loaded is None:
            asked = self.request
            self._loaded = Questions.of(self.source.path, asked.file, asked.samples, asked.seed, asked.device, asked.dtype)
            self.count = len(self._loaded.seen)
        return self._loaded

    def refits(self, plan: Plan) -> Any:
        """The refits of a plan by layer."""
        from converters.planning.fitting import fitted

        say("Fitting K and V of visual tokens.")
        return fitted(self.loaded.loaded.model, self.loaded.batches(), plan)

    def free(self) -> None:
        """Give the model's memory back: it is needed for writing."""
        self._loaded = None
        gc.collect()


def _planned(
    checkpoint: Any, questions: _Questions, recipe: Recipe, frontier: Path | None, grid: Grid | None, budget: float | None, refit: bool
) -> tuple[Plan, dict[str, Any], bool]:
    """A plan for the budget, the facts of its calibration, and whether it was found for, or is to have, refits."""
    assert budget is not None
    if frontier is not None:
        found = saved_frontier(frontier, checkpoint.fingerprint())
        facts = {"samples": found.samples, "from": found.questions_from, "seed": found.seed, "data": found.data}
        return found.at(budget).plan, facts, found.refit
    statistics, facts = statistics_of(checkpoint, questions.source, questions.request)
    if recipe is Recipe.AUTO:
        return _searched(questions, statistics, grid, budget, refit), facts, refit
    from converters.planning.presets import PRESETS, preset
    from converters.planning.recipes import make_plan

    make = preset if recipe.value in PRESETS else make_plan
    return make(recipe.value, statistics, checkpoint.sizes, statistics.grids if grid is None else (grid,), budget), facts, refit


def _searched(questions: _Questions, statistics: Any, grid: Grid | None, budget: float, refit: bool) -> Plan:
    """The measured plan for one budget."""
    frontier, _ = searched(questions.loaded, statistics, (budget,), grid, questions.request.seed, refit)
    say(f"{frontier.forwards:.0f} forward passes of {frontier.samples} questions. `yopo plan` makes the plans of several budgets at once.")
    plan: Plan = frontier.at(budget).plan
    return plan


def _write(checkpoint: Any, plan: Plan | None, refits: Any, folder: Path, provenance: Any, force: bool) -> None:
    """The checkpoint, under a bar."""
    from converters.checkpoint.convert import convert

    with byte_bar("Writing") as progress:
        convert(checkpoint, plan, folder, provenance, refits=refits, force=force, progress=progress)


def _default_output(name: str, budget: float | None, plan: Plan | None) -> Path:
    """NAME-yopo-BUDGET in the working folder; a plan from a file goes by the share that it reaches."""
    share = f"{budget:g}" if budget is not None else f"{cost(plan).share:.3g}" if plan is not None else "1"
    return Path(f"{name}-yopo-{share}")


def _command(
    model: str, budget: float | None, plan: Path | None, frontier: Path | None, cuts: dict[str, int | None], recipe: Recipe,
    compensation: Compensation | None, calibration: Path | None, samples: int, seed: int, statistics: Path | None, grid: str | None,
    dtype: Dtype,
) -> str:  # fmt: skip
    """The command that makes this model again. Where it was written to is not part of what it is."""
    words: list[str] = ["yopo", "convert", model]
    words += [] if budget is None else ["--budget", f"{budget:g}"]
    words += [] if plan is None else ["--plan", str(plan)]
    words += [] if frontier is None else ["--frontier", str(frontier)]
    words += [word for name, value in cuts.items() if value is not None for word in (f"--{name.replace('_', '-')}", str(value))]
    words += [] if compensation is None else ["--compensation", compensation.value]
    if budget != 1 and (plan is None or compensation is not None or calibration is not None):
        words += [] if recipe is Recipe.AUTO else ["--recipe", recipe.value]
        words += [] if calibration is None else ["--calibration", str(calibration)]
        words += [] if samples == SAMPLES else ["--samples", str(samples)]
        words += [] if seed == 0 else ["--seed", str(seed)]
        words += [] if statistics is None else ["--statistics", str(statistics)]
        words += [] if grid is None else ["--grid", grid]
        words += [] if dtype is Dtype.AUTO else ["--dtype", dtype.value]
    return shlex.join(words)


def _bill(checkpoint: Any, plan: Plan | None) -> Bill:
    """The plan's cost, or that of the dense model where there is none."""
    return dense_bill(dense_plan(checkpoint.sizes, (checkpoint.grid,))) if plan is None else bill(plan)


def _result(checkpoint: Any, plan: Plan | None, budget: float | None, name: str, facts: dict[str, Any] | None) -> dict[str, Any]:
    costs = cost_json(_bill(checkpoint, plan), budget)
    return {"model": name, **costs, "calibration": facts, "plan": None if plan is None else to_json(plan)}


def _compensation(written: Path) -> dict[str, Any] | None:
    """What config.json tells of refits."""
    from converters.checkpoint.reader import read_config

    found: dict[str, Any] | None = read_config(written).get("yopo", {}).get("compensation")
    return found


def _show(result: dict[str, Any], checkpoint: Any, plan: Plan | None, dry_run: bool, as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    if dry_run and plan is not None:
        show_text([*picture(plan), ""])
    costs = _bill(checkpoint, plan)
    show_table(*(dense_table(costs) if plan is None else cost_table(costs)))
    if not dry_run:
        show_text([f"Wrote {result['output']}"])
