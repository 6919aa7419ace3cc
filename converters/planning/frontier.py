"""The frontier: the best plan found for each budget that was asked for, and the way that leads down to the smallest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ..checkpoint.private import whole_file
from ..errors import YopoError
from ..runtime.plan import Plan, PlanError, from_json, normalise, to_json
from .cost import cost
from .fill_budget import Knob, limit_of, spent
from .importance import Ranks
from .search.moves import rank_of, visual_flops

SCHEMA = 1
FACTS = ("forwards", "questions_from", "samples", "seed", "model", "data", "refit")
AGAIN = "Make it again with `yopo plan`."


@dataclass(frozen=True)
class Point:
    """A plan, the mean shift of the answers' tokens that it was measured at (`trial.shift`), and how it was found."""

    plan: Plan
    shift: float
    origin: str
    asked: float | None = None

    @property
    def share(self) -> float:
        """The share of dense visual FLOPs reached."""
        return cost(self.plan).share


@dataclass(frozen=True)
class Frontier:
    """What a search found: `asked`, the plans of the budgets, falling, and `path`, the plans that it passed on the way, falling.

    `ranks` is the order of importance by which plans between these are filled up. `forwards` counts passes of all calibration questions
    through all layers; `samples` of them were drawn with `seed` from `questions_from`, and `data` is their hash; `model` is the
    checkpoint's fingerprint. `refit`: plans were measured with K and V of visual tokens refitted.
    """

    asked: tuple[Point, ...]
    path: tuple[Point, ...]
    ranks: Ranks
    forwards: float
    samples: int
    seed: int
    model: str
    data: str
    questions_from: str
    refit: bool = False

    def at(self, budget: float) -> Point:
        """The plan for a budget: the one searched for, else the best below it, filled up to the budget without measuring it again.

        Raises YopoError for a budget below the smallest plan of the frontier.
        """
        for point in self.asked:
            if point.asked == budget:
                return point
        limit = limit_of(budget, self.asked[0].plan)
        below = [point for point in (*self.asked, *self.path) if visual_flops(point.plan) <= limit]
        if not below:
            smallest = min(point.share for point in (*self.asked, *self.path))
            raise YopoError(f"The budget {budget:g} is below the frontier, which ends at {smallest:.4f}.", "Plan again with it.")
        best = min(below, key=lambda point: point.shift)
        return Point(spent(best.plan, limit, self.ranks, self._later(best)), best.shift, f"from {best.origin}", budget)

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
        ranks = {field.name: getattr(self.ranks, field.name) for field in fields(Ranks)}
        facts = {name: getattr(self, name) for name in FACTS}
        asked = [{**_facts(point), "plan": to_json(point.plan)} for point in self.asked]
        return {"schema": SCHEMA, **facts, "asked": asked, "path": _changes(self.path), "ranks": ranks}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises YopoError for anything else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise YopoError(f"The frontier {path} cannot be read: {error.strerror}.", "Check the path.") from None
        except ValueError as error:
            raise YopoError(f"The frontier {path} is not JSON: {error}.", AGAIN) from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or "path" not in data:
            raise YopoError(f"{path} is not a frontier that this version reads.", AGAIN)
        try:
            return cls._from_json(data)
        except (KeyError, TypeError, PlanError) as error:
            raise YopoError(f"The frontier {path} cannot be used: {error}.", AGAIN) from None

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Self:
        asked = tuple(Point(from_json(point["plan"]), point["shift"], point["origin"], point["asked"]) for point in data["asked"])
        ranks = Ranks(**{name: tuple(map(tuple, orders)) for name, orders in data["ranks"].items()})
        facts = {name: data[name] for name in FACTS}
        return cls(asked=asked, path=_from_changes(data["path"]), ranks=ranks, **facts)


def differing(lower: Plan, upper: Plan) -> list[Knob]:
    """The knobs in which one plan has more than the other: what a remainder is best spent on."""
    found = []
    for index, (less, more) in enumerate(zip(lower.layers, upper.layers, strict=True)):
        found += [
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
    return found


def _facts(point: Point) -> dict[str, Any]:
    return {"asked": point.asked, "reached": point.share, "shift": point.shift, "origin": point.origin}


def _changes(path: Sequence[Point]) -> list[dict[str, Any]]:
    """The first plan whole, the others as the layers in which they differ from the one before."""
    found: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    for point in path:
        plan = to_json(point.plan)
        if before is None:
            found.append({**_facts(point), "plan": plan})
        else:
            layers = {str(index): layer for index, layer in enumerate(plan["layers"]) if layer != before["layers"][index]}
            found.append({**_facts(point), "layers": layers, "locality": plan["locality"]})
        before = plan
    return found


def _from_changes(changes: list[dict[str, Any]]) -> tuple[Point, ...]:
    path: list[Point] = []
    plan: dict[str, Any] = {}
    for change in changes:
        plan = dict(change["plan"]) if "plan" in change else {**plan, "locality": change["locality"]}
        plan["layers"] = list(plan["layers"])
        for index, layer in change.get("layers", {}).items():
            plan["layers"][int(index)] = layer
        path.append(Point(normalise(from_json(plan)), change["shift"], change["origin"], change["asked"]))
    return tuple(path)
