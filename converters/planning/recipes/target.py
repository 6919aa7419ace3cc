"""What a recipe is given, and what recipes have in common: a path of plans, and how far a budget goes along it."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...errors import YopoError
from ...runtime.plan import Grid, Plan, Sizes, dense_plan, normalise
from ..cost import cost
from ..fill_budget import limit_of, neurons_beside, with_neurons
from ..importance import ImportanceOrder, LayerScores

Unit = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class Target:
    """What a recipe plans for: a plan of these sizes within a budget, the share of dense visual FLOPs on these grids.

    `scores` are those of the layers, for recipes that go by whole layers. `windows`: visual tokens may have a window.
    """

    order: ImportanceOrder
    sizes: Sizes
    grids: tuple[Grid, ...]
    budget: float
    scores: tuple[LayerScores, ...] = ()
    windows: bool = True

    @property
    def dense(self) -> Plan:
        return dense_plan(self.sizes, self.grids)

    @property
    def limit(self) -> int:
        """The budget in visual FLOPs."""
        return limit_of(self.budget, self.dense)

    def fits(self, plan: Plan) -> bool:
        return cost(plan).visual <= self.limit

    def room(self, plan: Plan) -> int:
        """How many neurons fit into the budget beside this plan."""
        return neurons_beside(normalise(plan), self.limit)

    def capacity(self, plan: Plan) -> int:
        """Neurons of the layers whose updates a later layer reads."""
        return max(0, plan.visual_depth - 1) * self.sizes.intermediate_size

    def filled(self, plan: Plan) -> Plan:
        """The plan with as many neurons as fit, spread evenly."""
        return with_neurons(normalise(plan), self.limit, self.order)


@dataclass(frozen=True)
class Path:
    """Plans without neurons, `at(0)` to `at(steps)`; each costs more than the one before it."""

    steps: int
    at: Callable[[int], Plan]


def by_layer(units: Iterable[Unit], layers: int) -> list[tuple[int, ...]]:
    """The heads of each layer, sorted."""
    kept: list[list[int]] = [[] for _ in range(layers)]
    for layer, head in units:
        kept[layer].append(head)
    return [tuple(sorted(heads)) for heads in kept]


def first_to_reach(target: Target, paths: Iterable[Path]) -> Path:
    """The first path that can use the budget up, else the last."""
    for path in paths:
        largest = path.at(path.steps)
        if target.room(largest) <= target.capacity(largest):
            return path
    return path


def follow(path: Path, target: Target) -> Plan:
    """The plan on the path where heads and neurons together, in equal shares, meet the budget; then neurons exactly."""

    def together(step: int) -> bool:
        plan = path.at(step)
        return target.room(plan) >= target.capacity(plan) * step // max(1, path.steps)

    step = largest(together, path.steps)
    while step < path.steps and target.room(path.at(step)) > target.capacity(path.at(step)) and target.fits(path.at(step + 1)):
        step += 1
    return target.filled(path.at(step))


def largest(holds: Callable[[int], bool], last: int) -> int:
    """The largest step in 0..last for which `holds`, which is true up to some step and false from there on; 0 if for none."""
    return bisect_left(range(1, last + 1), True, key=lambda step: not holds(step))


def require(smallest: Plan, target: Target, what: str) -> None:
    if not target.fits(smallest):
        raise YopoError(
            f"The budget {target.budget:g} is below the smallest that {what} can reach.",
            f"The smallest possible budget is {_rounded_up(cost(smallest).share)}.",
        )


def _rounded_up(share: float) -> str:
    """A share in three significant digits, not below it, so that it can be asked for."""
    text = f"{share:.2e}"
    if float(text) < share:
        mantissa, exponent = text.split("e")
        text = f"{float(mantissa) + 0.01:.2f}e{exponent}"
    return f"{float(text):g}"
