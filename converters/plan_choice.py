"""The plan that a model is pruned by, from what was asked for: a plan, a point of a frontier, or a budget."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .calibration.statistics import Statistics
from .checkpoint.convert import check_plan
from .data.split import SampleSplit
from .errors import YopoError
from .model import Model
from .planner import knobs_without, statistics_of
from .planner import plan as plan_budgets
from .planning.frontier import Point
from .planning.recipes import RECIPES, make_plan
from .planning.search.search import Effort
from .progress import Listener, Message
from .runtime.plan import Grid, Plan, factored

SEARCHED = "auto"
REFITTED = (SEARCHED, "interlaced")
"""Recipes whose plans come with refits unless told otherwise; the others are what others do."""


@dataclass(frozen=True)
class PlanRequest:
    """What `convert` was asked to prune by: `plan` is one, a point of a frontier, or a budget, for which one is made."""

    plan: Plan | Point | float
    recipe: str
    split: SampleSplit | None
    seed: int
    statistics: Statistics | Path | None
    grid: Grid | None
    refit: bool | None
    served_by: str | None
    effort: Effort | str | float


@dataclass(frozen=True)
class PlanChoice:
    """What is to be written: a plan (None: the dense model), with refits or without, and where it is from."""

    plan: Plan | None
    budget: float | None
    refit: bool
    recipe: str | None = None
    calibration: dict[str, Any] | None = None
    split: SampleSplit | None = None


def choose_plan(model: Model, request: PlanRequest, progress: Listener) -> PlanChoice:
    """From what was asked for to what is to be written."""
    plan, refit = request.plan, request.refit
    if isinstance(plan, Plan):
        checked = check_plan(plan, model.checkpoint.sizes)
        return PlanChoice(checked, None, bool(factored(checked) or request.split) if refit is None else refit, split=request.split)
    if isinstance(plan, Point):
        return _from_frontier(model, plan, request)
    if not 0 < plan <= 1:
        raise YopoError(f"The budget is {plan:g}, which is not within 0..1.", "It is the kept share of the visual FLOPs, such as 0.25.")
    if plan == 1:
        if refit:
            raise YopoError("There is nothing to make up for: at a budget of 1 nothing is pruned.", "Ask for no refit.")
        return PlanChoice(None, 1.0, False)
    return _from_recipe(model, plan, request, progress)


def _from_frontier(model: Model, point: Point, request: PlanRequest) -> PlanChoice:
    """The plan of a frontier's point, which must be of this model."""
    frontier = point.frontier
    if frontier is None:
        raise YopoError("This point is of no frontier.", "Take it from one: frontier.at(0.25).")
    if frontier.model != model.fingerprint:
        raise YopoError(
            f"The frontier is of another model ({frontier.model[:12]}, this one is {model.fingerprint[:12]}).", "Make one with `yopo plan`."
        )
    checked = check_plan(point.plan, model.checkpoint.sizes)
    facts = {"samples": frontier.samples, "from": frontier.questions_from, "seed": frontier.seed, "data": frontier.data}
    refit = frontier.compensated or bool(factored(checked)) if request.refit is None else request.refit
    return PlanChoice(checked, point.asked, refit, SEARCHED, facts, request.split or frontier.split)


def _from_recipe(model: Model, budget: float, request: PlanRequest, progress: Listener) -> PlanChoice:
    """A plan made now for a budget."""
    recipe, split = request.recipe, request.split
    if recipe not in (SEARCHED, *RECIPES):
        raise YopoError(f"There is no recipe {recipe!r}.", f"There are: {', '.join((SEARCHED, *RECIPES))}.")
    if split is None:
        raise YopoError("A plan is made on samples, and there are none.", "Pass samples: questions about pictures such as yours.")
    statistics = statistics_of(model, request.statistics, split, request.seed, progress)
    refit = recipe in REFITTED if request.refit is None else request.refit
    grids = statistics.grids if request.grid is None else (request.grid,)
    if recipe == SEARCHED:
        chosen = _searched(model, budget, statistics, replace(request, split=split, refit=refit), progress)
    else:
        windows = "window" not in knobs_without(request.served_by)
        chosen = make_plan(recipe, statistics, model.checkpoint.sizes, grids, budget, windows)
    facts = {"samples": statistics.samples, "from": statistics.questions_from, "seed": statistics.seed, "data": statistics.data}
    return PlanChoice(chosen, budget, refit or (request.refit is None and bool(factored(chosen))), recipe, facts, split)


def _searched(model: Model, budget: float, statistics: Statistics, request: PlanRequest, progress: Listener) -> Plan:
    """The measured plan for one budget."""
    assert request.split is not None
    how: dict[str, Any] = {"seed": request.seed, "statistics": statistics, "grid": request.grid, "refit": request.refit}
    how |= {"served_by": request.served_by, "effort": request.effort}
    frontier = plan_budgets(model, request.split, (budget,), **how, progress=progress)
    passes = f"{frontier.forwards:.0f} forward passes of {frontier.samples} questions."
    progress(Message(f"{passes} `yopo plan` makes the plans of several budgets at once."))
    return frontier.at(budget).plan
