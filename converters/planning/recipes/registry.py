"""Recipes: a budget becomes a plan at once, from statistics alone. All by name, whatever made them up."""

from collections.abc import Callable

from ...calibration.statistics import Statistics
from ...errors import YopoError
from ...runtime.plan import Grid, Plan, Sizes, normalise, validate
from ..importance import importance_order, layer_scores
from .interlaced import interlaced, smallest_plan
from .layers import opskip, shortv, vica
from .paper import yopo
from .target import Target, require

RECIPES: dict[str, Callable[[Target], Plan]] = {
    "interlaced": interlaced,
    "yopo": yopo,
    "shortv": shortv,
    "opskip": opskip,
    "vica": vica,
}


def make_plan(
    recipe: str, statistics: Statistics | None, sizes: Sizes, grids: tuple[Grid, ...], budget: float, windows: bool = True
) -> Plan:  # fmt: skip
    """The recipe's plan for a budget, the kept share of dense visual FLOPs on these grids, in (0, 1); normalised.

    It costs at most the budget, and less than one neuron below it (unless one head costs more than all neurons of a layer); a
    budget above the normalised dense plan's cost gives that plan. Without statistics layers, heads and neurons count as alike. Raises
    YopoError for an unknown recipe, a budget out of range or below the recipe's smallest plan, statistics of other sizes, and a recipe
    that needs windows where `windows` are not wanted.
    """
    if recipe not in RECIPES:
        raise YopoError(f"There is no recipe {recipe!r}.", f"Recipes: {', '.join(RECIPES)}.")
    if not 0 < budget < 1:
        raise YopoError(f"The budget is {budget:g}, not between 0 and 1.", "It is the kept share of dense visual FLOPs, such as 0.25.")
    target = Target(importance_order(statistics, sizes), sizes, grids, budget, layer_scores(statistics, sizes), windows)
    require(smallest_plan(sizes, grids), target, "a plan")
    dense = normalise(target.dense)
    plan = dense if target.fits(dense) else validate(normalise(RECIPES[recipe](target)))
    if not windows and any(layer.window is not None for layer in plan.layers):
        raise YopoError(f"The recipe {recipe} gives visual tokens a window.", "Use the recipe auto or interlaced.")
    return plan
