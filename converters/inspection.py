"""What a plan does and what it costs, from config.json or the plan's own file: no weight is read, and no torch imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import YopoError
from .json_files import read_json
from .loading import locate_config
from .planning.prefill import PrefillCost
from .runtime.plan import Plan, PlanError, dense_plan, from_json, to_json

FACTS = ("version", "recipe", "base", "calibration", "compensation", "refitted", "healing", "attention")


@dataclass(frozen=True)
class Inspection:
    """A converted model, a plan, or a dense model, of which `plan` is the one that prunes nothing.

    `family` is a dense model's, `section` what yopo wrote into a converted one's config.json, {} for a plan alone. `quantised` names how
    a model's weights are.
    """

    name: str
    plan: Plan
    costs: PrefillCost
    family: str | None
    section: Mapping[str, Any]
    quantised: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object; the `plan` of a dense model is null."""
        plan = {"visual_depth": self.plan.visual_depth, "quantised": self.quantised}
        if self.family is not None:
            return {"model": self.name, "family": self.family, **self.costs.to_json(), **plan, "plan": None}
        facts = {key: self.section.get(key) for key in FACTS}
        asked = self.section.get("budget", {}).get("asked")
        return {"model": self.name, **self.costs.to_json(asked), **plan, **facts, "plan": to_json(self.plan)}


def inspect(model: str | Path | Plan) -> Inspection:
    """Look at a plan (a `Plan`, or its JSON file), or at a model: a short name, a Hub id, or a folder; of it config.json is enough.

    Raises YopoError.
    """
    if isinstance(model, Plan):
        return Inspection("Plan", model, PrefillCost.of(model), None, {})
    if str(model).endswith(".json") and Path(model).is_file():
        plan = read_plan(Path(model))
        return Inspection(f"Plan {model}", plan, PrefillCost.of(plan), None, {})
    from .checkpoint.config import method_of

    name, config = locate_config(str(model))
    if "yopo" in config:
        from .checkpoint.config import section_plan

        plan = section_plan(config, Path(model))
        return Inspection(name, plan, PrefillCost.of(plan), None, config["yopo"], quantised=method_of(config))
    from .families import family_of, sizes_and_grids

    family = family_of(config)
    sizes, grids = sizes_and_grids(family, config)
    plan = dense_plan(sizes, grids)
    return Inspection(name, plan, PrefillCost.of_dense(plan), family.name, {}, quantised=method_of(config))


def read_plan(file: Path) -> Plan:
    """A plan from a file: bare, or as the `plan` of what `--json` printed. Raises YopoError."""
    data = read_json(file, "Check the path, or make one: yopo convert MODEL --budget 0.25 --dry-run --json")
    if isinstance(data, dict) and "schema" not in data and "plan" in data:
        data = data["plan"]
    try:
        return from_json(data)
    except PlanError as error:
        hint = "A newer version of yopo may have made it. `yopo convert MODEL --budget 0.25 --dry-run --json` makes one for this version."
        raise YopoError(f"The plan {file} cannot be used: {error}.", hint) from None
