"""`yopo inspect`: what a plan does and what it costs, without reading a weight."""

from pathlib import Path
from typing import Annotated, Any

import typer

from converters.runtime.plan import Plan

from ..options import Json, read_plan


def inspect(
    model: Annotated[str, typer.Argument(metavar="OUT|PLAN.json|MODEL", help="A converted model, a plan, or a dense model.")],
    as_json: Json = False,
) -> None:
    """Show a plan: a picture of every layer, and its cost in all four ways of counting. Reads no weights."""
    from ..picture import picture
    from ..report import cost_json, cost_table
    from ..terminal import show_json, show_table, show_text

    title, plan, section = _plan_of(model)
    asked = section.get("budget", {}).get("asked")
    if as_json:
        from converters.runtime.plan import to_json

        facts = {key: section.get(key) for key in ("version", "recipe", "base", "calibration", "attention")}
        show_json({"model": model, **facts, **cost_json(plan, asked), "visual_depth": plan.visual_depth, "plan": to_json(plan)})
        return
    show_text([title, *_origin(section), "", *picture(plan), ""])
    show_table(*cost_table(plan))


def _plan_of(model: str) -> tuple[str, Plan, dict[str, Any]]:
    """A title, the plan, and the `yopo` section of a converted model ({} for others)."""
    if model.endswith(".json") and Path(model).is_file():
        plan = read_plan(Path(model))
        return f"Plan {model}: {_sizes(plan)}", plan, {}
    from ..loader import locate_config

    name, config = locate_config(model)
    from converters.families import family_of
    from converters.runtime.plan import dense_plan, from_json, normalise

    if "yopo" in config:
        plan = from_json(config["yopo"].get("plan"))
        return f"{name}: {_sizes(plan)}", plan, config["yopo"]
    family = family_of(config)
    plan = normalise(dense_plan(family.sizes(config), (family.grid(config),)))
    return f"{name}, dense {family.name}: {_sizes(plan)}", plan, {}


def _sizes(plan: Plan) -> str:
    sizes = plan.sizes
    kv = f" ({sizes.num_key_value_heads} KV)" if sizes.num_key_value_heads != sizes.num_attention_heads else ""
    grids = " + ".join(map(str, plan.grids))
    return (
        f"{sizes.num_hidden_layers} layers, {sizes.num_attention_heads} heads{kv}, {sizes.intermediate_size} neurons; {grids} visual tokens"
    )


def _origin(section: dict[str, Any]) -> list[str]:
    if not section:
        return []
    base, calibration, budget = section.get("base", {}), section.get("calibration"), section.get("budget", {})
    revision = f"@{base['revision'][:12]}" if base.get("revision") else ""
    lines = [f"base {base.get('repository') or base.get('name')}{revision}, converted by yopo {section.get('version')}"]
    if calibration:
        lines.append(f"recipe {section.get('recipe')}, calibrated on {calibration.get('samples')} samples of {calibration.get('from')}")
    if budget.get("asked") is not None:
        lines.append(f"budget asked {budget['asked']:.4g}, reached {budget['reached']:.4g}")
    return lines
