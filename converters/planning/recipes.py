"""Recipes: a budget becomes a plan. Every recipe meets any budget that it can reach from below, to one neuron.

A recipe is a path of plans from small to large that differ in what is read and in the heads that visual tokens compute; the
budget decides how far along it goes, and neurons, the smallest units there are, make up the rest.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor

from ..calibration.statistics import Statistics
from ..errors import YopoError
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise, validate
from ..runtime.stride import MAX_STRIDE
from .cost import cost, dense_visual_flops
from .importance import Ranks, ranks

WINDOW = 5  # the paper's `attncut_w`
EXEMPT_LAYERS = 2  # the paper keeps all heads of layers 0 and 1
NOTHING = LayerPlan((), (), ())
Unit = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class Target:
    """What a recipe plans for: a plan of these sizes within a budget, the share of dense visual FLOPs on these grids."""

    ranks: Ranks
    sizes: Sizes
    grids: tuple[Grid, ...]
    budget: float

    @property
    def limit(self) -> int:
        """The budget in visual FLOPs."""
        return floor(Fraction(self.budget) * dense_visual_flops(self.sizes, self.grids))

    def fits(self, plan: Plan) -> bool:
        return cost(plan).visual <= self.limit

    def room(self, plan: Plan) -> int:
        """Neurons that can be paid for beside this plan; each costs its gate, up and down for all visual tokens."""
        return (self.limit - cost(plan).visual) // (2 * 3 * self.sizes.hidden_size * plan.visual_tokens)

    def capacity(self, plan: Plan) -> int:
        """Neurons of the layers whose updates a later layer reads."""
        return max(0, plan.visual_depth - 1) * self.sizes.intermediate_size


@dataclass(frozen=True)
class Path:
    """Plans without neurons, `at(0)` to `at(steps)`; each costs more than the one before it."""

    steps: int
    at: Callable[[int], Plan]


def make_plan(recipe: str, statistics: Statistics | None, sizes: Sizes, grids: tuple[Grid, ...], budget: float) -> Plan:
    """The recipe's plan for a budget, the kept share of dense visual FLOPs on these grids, in (0, 1); normalised.

    It costs at most the budget, and less than one neuron below it (unless one head costs more than all neurons of a layer); a
    budget above the normalised dense plan's cost gives that plan. Without statistics heads and neurons count as alike. Raises
    YopoError for an unknown recipe, a budget out of range or below the smallest plan, and statistics of other sizes.
    """
    if recipe not in RECIPES:
        raise YopoError(f"There is no recipe {recipe!r}.", f"Recipes: {', '.join(RECIPES)}.")
    if not 0 < budget < 1:
        raise YopoError(f"The budget is {budget:g}, not between 0 and 1.", "It is the kept share of dense visual FLOPs, such as 0.25.")
    target = Target(ranks(statistics, sizes), sizes, grids, budget)
    _require(smallest_plan(sizes, grids), target, "a plan")
    dense = normalise(dense_plan(sizes, grids))
    return dense if target.fits(dense) else validate(normalise(RECIPES[recipe](target)))


def smallest_plan(sizes: Sizes, grids: tuple[Grid, ...]) -> Plan:
    """One reading KV head of layer 0, at the largest stride."""
    first = LayerPlan(tuple(range(sizes.group)), (), (), read_stride=MAX_STRIDE)
    return Plan(sizes, (first,) + (NOTHING,) * (sizes.num_hidden_layers - 1), grids)


def interlaced(target: Target) -> Plan:
    """Freeze all, read all, interlaced: all heads of all layers read with as small a stride as fits, later layers with one more.

    When every head reads every token, the rest goes to self heads and neurons alike, evenly over the layers, the best of each
    first; self heads have a causal window of 5 unless the budget is not used up that way. Where all heads do not fit with the
    largest stride, the best KV heads of each layer read, those of the earliest layers first (of layer 0 last: nothing can be
    updated before it).
    """
    reading = _reading(target)
    step = _largest(lambda step: target.fits(reading.at(step)), reading.steps)
    if step == reading.steps:
        paths = (_updating(target, reading.at(step), window) for window in (WINDOW, None))
        return _follow(_first_to_reach(target, paths), target)
    return _fill(reading.at(step), target) if target.fits(reading.at(step)) else smallest_plan(target.sizes, target.grids)


def yopo(target: Target, window: int | None = WINDOW, locality: str = "symmetric") -> Plan:
    """The paper's recipe (arXiv 2410.06169): heads that read and compute alike, chosen by the vote on their ratios; all of
    layers 0 and 1; a symmetric window of 5 unless told otherwise; visual depth L/2; the first neurons, unranked; shares of both
    falling together.

    Where half of the layers cannot use the budget up, the depth is the smallest that can, without a window if none can. Where
    it cannot be met with all heads of layers 0 and 1, they are no longer exempt. Raises YopoError below one head.
    """
    target = replace(target, ranks=replace(target.ranks, neurons=ranks(None, target.sizes).neurons))
    layers = target.sizes.num_hidden_layers
    half = max(layers // 2, min(2, layers))  # in a depth of one nothing is updated
    settings = [(depth, window) for depth in range(half, layers + 1)] + [(layers, None)]
    for exempt in (EXEMPT_LAYERS, 0):
        path = _first_to_reach(target, [_keeping(target, depth, window, locality, exempt) for depth, window in settings])
        plan = _follow(path, target)
        if target.room(plan) == 0:
            break
    _require(path.at(0), target, "the recipe yopo")
    return plan


RECIPES: dict[str, Callable[[Target], Plan]] = {"interlaced": interlaced, "yopo": yopo}


def _reading(target: Target) -> Path:
    """KV heads that text reads, one more at a time at the largest stride, then all with smaller and smaller ones."""
    sizes = target.sizes
    layers = sizes.num_hidden_layers
    order = [
        (layer, target.ranks.read_kv_heads[layer][place]) for place in range(sizes.num_key_value_heads) for layer in (*range(1, layers), 0)
    ]

    def at(step: int) -> Plan:
        heads = _by_layer(order[: step + 1], layers)
        lowered = max(0, step + 1 - len(order))
        read = [tuple(sizes.group * kv_head + place for kv_head in kv_heads for place in range(sizes.group)) for kv_heads in heads]
        strides = [MAX_STRIDE - (lowered + layers - 1 - layer) // layers for layer in range(layers)]
        return Plan(sizes, tuple(map(lambda heads, stride: LayerPlan(heads, (), (), read_stride=stride), read, strides)), target.grids)

    return Path(len(order) - 1 + (MAX_STRIDE - 1) * layers, at)


def _updating(target: Target, reading: Plan, window: int | None) -> Path:
    """Self heads on top of a plan that reads everywhere, one more at a time, evenly over the layers that are read later."""
    sizes = target.sizes
    order = [
        (layer, target.ranks.self_heads[layer][place])
        for place in range(sizes.num_attention_heads)
        for layer in range(sizes.num_hidden_layers - 1)
    ]

    def at(step: int) -> Plan:
        heads = _by_layer(order[:step], sizes.num_hidden_layers)
        layers = [replace(layer, self_heads=kept, window=window) for layer, kept in zip(reading.layers, heads, strict=True)]
        return replace(reading, layers=tuple(layers))

    return Path(len(order), at)


def _keeping(target: Target, depth: int, window: int | None, locality: str, exempt: int) -> Path:
    """The paper's heads down to a depth, one more at a time by ratio; all heads of the exempt layers throughout.

    Without exemption the path starts with one head, and layer 0 comes last: nothing can be updated before it.
    """
    sizes = target.sizes
    heads = range(sizes.num_attention_heads)
    always = [(layer, head) for layer in range(min(exempt, depth)) for head in heads]
    voted = [(layer, head) for layer in range(min(exempt, depth), depth) for head in heads]
    voted.sort(key=lambda unit: (unit[0] == 0, -target.ranks.ratios[unit[0]][unit[1]], unit[1], unit[0]))
    first = 0 if always else 1

    def at(step: int) -> Plan:
        kept = _by_layer(always + voted[: first + step], sizes.num_hidden_layers)
        return Plan(sizes, tuple(LayerPlan(heads, heads, (), window) for heads in kept), target.grids, locality)

    return Path(len(voted) - first, at)


def _by_layer(units: Iterable[Unit], layers: int) -> list[tuple[int, ...]]:
    """The heads of each layer, sorted."""
    found: list[list[int]] = [[] for _ in range(layers)]
    for layer, head in units:
        found[layer].append(head)
    return [tuple(sorted(heads)) for heads in found]


def _first_to_reach(target: Target, paths: Iterable[Path]) -> Path:
    """The first path that can use the budget up, else the last."""
    for path in paths:
        largest = path.at(path.steps)
        if target.room(largest) <= target.capacity(largest):
            return path
    return path


def _follow(path: Path, target: Target) -> Plan:
    """The plan on the path where heads and neurons together, in equal shares, meet the budget; then neurons exactly."""

    def together(step: int) -> bool:
        plan = path.at(step)
        return target.room(plan) >= target.capacity(plan) * step // max(1, path.steps)

    step = _largest(together, path.steps)
    while step < path.steps and target.room(path.at(step)) > target.capacity(path.at(step)) and target.fits(path.at(step + 1)):
        step += 1
    return _fill(path.at(step), target)


def _fill(plan: Plan, target: Target) -> Plan:
    """The plan with as many neurons as fit, the best of each layer, evenly over the layers that are read later."""
    layers = max(0, plan.visual_depth - 1)
    each, more = divmod(max(0, min(target.room(plan), target.capacity(plan))), max(1, layers))
    counts = [(each + (layer < more)) * (layer < layers) for layer in range(target.sizes.num_hidden_layers)]
    kept = [tuple(sorted(order[:count])) for order, count in zip(target.ranks.neurons, counts, strict=True)]
    return replace(plan, layers=tuple(replace(layer, neurons=neurons) for layer, neurons in zip(plan.layers, kept, strict=True)))


def _largest(holds: Callable[[int], bool], last: int) -> int:
    """The largest step in 0..last for which `holds`, which is true up to some step and false from there on; 0 if for none."""
    return bisect_left(range(1, last + 1), True, key=lambda step: not holds(step))


def _require(smallest: Plan, target: Target, what: str) -> None:
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
