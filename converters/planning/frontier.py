"""The frontier: the best plan of each budget that was asked for, and the plans on the way down to the smallest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from ..checkpoint.private import whole_file
from ..data.split import SampleSplit
from ..errors import YopoError
from ..json_files import conforming, read_object
from ..runtime.plan import Plan, PlanError, from_json, normalise, to_json
from .cost import cost
from .fill_budget import Knob, fill_budget, limit_of
from .importance import ImportanceOrder
from .search.moves import rank_of, visual_flops

SCHEMA = 1
FACTS = ("forwards", "dense_forwards", "questions_from", "samples", "seed", "model", "data", "compensated")
MAX_BYTES = 1 << 28
AGAIN = "Make it again with `yopo plan`."


@dataclass(frozen=True)
class Point:
    """A plan, the mean logit drift of the answers' tokens that it was measured at, how it was found, and its frontier."""

    plan: Plan
    logit_drift: float
    origin: str
    asked: float | None = None
    frontier: "Frontier | None" = field(default=None, repr=False, compare=False)

    @property
    def share(self) -> float:
        """The share of dense visual FLOPs reached."""
        return cost(self.plan).share


@dataclass(frozen=True)
class Frontier:
    """What a search found: `asked`, the plans of the budgets, falling, and `path`, the plans that it passed on the way, falling.

    `order` is the order of importance by which plans between these are filled up. `forwards` counts passes of all calibration questions
    through all layers, `dense_forwards` the same by FLOPs, in passes of the dense model; `samples` of them were drawn with `seed` from
    `questions_from`, and `data` is their hash; `model` is the checkpoint's fingerprint. `compensated`: plans were measured with linear
    compensation. `split`: the samples themselves while they are at hand; they are not saved.
    """

    asked: tuple[Point, ...]
    path: tuple[Point, ...]
    order: ImportanceOrder
    forwards: float
    samples: int
    seed: int
    model: str
    data: str
    questions_from: str
    compensated: bool = False
    dense_forwards: float | None = None
    split: SampleSplit | None = field(default=None, repr=False, compare=False)

    def at(self, budget: float) -> Point:
        """The plan for a budget: the one searched for, else the best below it, filled up to the budget without measuring it again.

        Raises YopoError for a budget below the smallest plan of the frontier.
        """
        for point in self.asked:
            if point.asked == budget:
                return replace(point, frontier=self)
        limit = limit_of(budget, self.asked[0].plan)
        below = [point for point in (*self.asked, *self.path) if visual_flops(point.plan) <= limit]
        if not below:
            smallest = min(point.share for point in (*self.asked, *self.path))
            raise YopoError(f"The budget {budget:g} is below the frontier, which ends at {smallest:.4f}.", "Plan again with it.")
        best = min(below, key=lambda point: point.logit_drift)
        return Point(fill_budget(best.plan, limit, self.order, self._later(best)), best.logit_drift, f"from {best.origin}", budget, self)

    def _later(self, point: Point) -> list[Knob]:
        """The knobs in which the path's next plan above differs."""
        above = [other for other in self.path if visual_flops(other.plan) > visual_flops(point.plan)]
        return differing(point.plan, above[-1].plan) if above else []

    def save(self, path: Path) -> None:
        """Write the frontier as JSON, whole or not at all."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the path's plans are written as the layers that change."""
        order = {field.name: getattr(self.order, field.name) for field in fields(ImportanceOrder)}
        facts = {name: getattr(self, name) for name in FACTS}
        asked = [{**_facts(point), "plan": to_json(point.plan)} for point in self.asked]
        return {"schema": SCHEMA, **facts, "asked": asked, "path": _changes(self.path), "importance_order": order}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises YopoError for anything else, also where its parts do not go together."""
        from .frontier_schema import FrontierFile, check

        data = read_object(path, AGAIN, MAX_BYTES)
        if data.get("schema") != SCHEMA:
            raise YopoError(f"{path} is not a frontier that this version reads.", AGAIN)
        typed = conforming(FrontierFile, data, f"The frontier {path}", AGAIN)
        try:
            frontier = cls._from_json(data)
            check([point.plan for point in (*frontier.asked, *frontier.path)], frontier.order, typed)
        except (PlanError, YopoError) as error:
            raise YopoError(f"The frontier {path} cannot be used: {error}.", AGAIN) from None
        return frontier

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Self:
        asked = tuple(Point(from_json(point.get("plan")), point["logit_drift"], point["origin"], point["asked"]) for point in data["asked"])
        order = ImportanceOrder(**{name: tuple(map(tuple, orders)) for name, orders in data["importance_order"].items()})
        facts: dict[str, Any] = {name: data.get(name) for name in FACTS}
        return cls(asked=asked, path=_from_changes(data["path"]), order=order, **facts)


def differing(lower: Plan, upper: Plan) -> list[Knob]:
    """The knobs in which one plan has more than the other: what a remainder is best spent on."""
    knobs = []
    for index, (less, more) in enumerate(zip(lower.layers, upper.layers, strict=True)):
        knobs += [
            (index, knob)
            for knob, one, other in (
                ("rank", rank_of(less, lower.sizes), rank_of(more, lower.sizes)),
                ("stride", -less.read_stride, -more.read_stride),
                ("read", len(less.read_heads), len(more.read_heads)),
                ("self", len(less.self_heads), len(more.self_heads)),
                ("neurons", len(less.neurons), len(more.neurons)),
            )
            if one < other
        ]
    return knobs


def _facts(point: Point) -> dict[str, Any]:
    return {"asked": point.asked, "reached": point.share, "logit_drift": point.logit_drift, "origin": point.origin}


def _changes(path: Sequence[Point]) -> list[dict[str, Any]]:
    """The first plan whole, the others as the layers in which they differ from the one before."""
    changes: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    for point in path:
        plan = to_json(point.plan)
        if before is None:
            changes.append({**_facts(point), "plan": plan})
        else:
            layers = {str(index): layer for index, layer in enumerate(plan["layers"]) if layer != before["layers"][index]}
            changes.append({**_facts(point), "layers": layers, "locality": plan["locality"]})
        before = plan
    return changes


def _from_changes(changes: list[dict[str, Any]]) -> tuple[Point, ...]:
    """The inverse of `_changes`. Raises PlanError."""
    path: list[Point] = []
    plan: dict[str, Any] = {}
    for change in changes:
        plan = dict(change["plan"]) if change.get("plan") is not None else {**plan, "locality": change.get("locality")}
        layers = plan.get("layers")
        if change.get("layers") and isinstance(layers, list):
            plan["layers"] = _changed(layers, change["layers"])
        path.append(Point(normalise(from_json(plan)), change["logit_drift"], change["origin"], change["asked"]))
    return tuple(path)


def _changed(layers: list[Any], changes: dict[str, Any]) -> list[Any]:
    numbered = {int(index): layer for index, layer in changes.items()}
    if numbered and max(numbered) >= len(layers):
        raise PlanError(f"it changes layer {max(numbered)} of {len(layers)}")
    return [numbered.get(index, layer) for index, layer in enumerate(layers)]
