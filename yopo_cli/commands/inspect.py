"""`yopo inspect`: what a plan does and what it costs, without reading a weight."""

from pathlib import Path
from typing import Annotated, Any

import typer

from converters.loading import locate_config
from converters.runtime.plan import Plan, dense_plan, from_json, ranges, to_json

from ..ui.costs import bill, cost_json, cost_table, dense_bill, dense_table
from ..ui.options import Json, read_plan
from ..ui.picture import picture
from ..ui.terminal import show_json, show_table, show_text

FACTS = ("version", "recipe", "base", "calibration", "compensation", "refitted", "healing", "attention")


def inspect(
    model: Annotated[str, typer.Argument(metavar="OUT|PLAN.json|MODEL", help="A converted model, a plan, or a dense model.")],
    as_json: Json = False,
) -> None:
    """Show a plan: a picture of every layer, and its cost in all four ways of counting. Reads no weights."""
    if model.endswith(".json") and Path(model).is_file():
        _show_plan(f"Plan {model}", read_plan(Path(model)), {}, as_json)
        return
    name, config = locate_config(model)
    if "yopo" in config:
        _show_plan(name, from_json(config["yopo"].get("plan")), config["yopo"], as_json)
    else:
        _show_dense(name, config, as_json)


def _show_plan(name: str, plan: Plan, section: dict[str, Any], as_json: bool) -> None:
    """`section` is the one that `yopo` wrote into config.json, {} for a bare plan."""
    costs = bill(plan)
    if as_json:
        facts = {key: section.get(key) for key in FACTS}
        asked = section.get("budget", {}).get("asked")
        show_json({"model": name, **cost_json(costs, asked), "visual_depth": plan.visual_depth, **facts, "plan": to_json(plan)})
        return
    show_text([f"{name}: {_sizes(plan)}", *_origin(section), "", *picture(plan), ""])
    show_table(*cost_table(costs))


def _show_dense(name: str, config: dict[str, Any], as_json: bool) -> None:
    from converters.families import family_of

    family = family_of(config)
    plan = dense_plan(family.sizes(config), (family.grid(config),))
    costs = dense_bill(plan)
    if as_json:
        show_json({"model": name, "family": family.name, **cost_json(costs, None), "visual_depth": plan.visual_depth, "plan": None})
        return
    show_text([f"{name}, a dense {family.name}: {_sizes(plan)}", ""])
    show_table(*dense_table(costs))


def _sizes(plan: Plan) -> str:
    sizes = plan.sizes
    kv = f" ({sizes.num_key_value_heads} KV)" if sizes.num_key_value_heads != sizes.num_attention_heads else ""
    grids = " + ".join(map(str, plan.grids))
    return (
        f"{sizes.num_hidden_layers} layers, {sizes.num_attention_heads} heads{kv}, {sizes.intermediate_size} neurons; {grids} visual tokens"
    )


def _origin(section: dict[str, Any]) -> list[str]:
    """Lines on where a converted model comes from."""
    if not section:
        return []
    base, calibration, budget = section.get("base", {}), section.get("calibration"), section.get("budget", {})
    revision = f"@{base['revision'][:12]}" if base.get("revision") else ""
    lines = [f"base {base.get('repository') or base.get('name')}{revision}, converted by yopo {section.get('version')}"]
    if calibration:
        lines.append(f"recipe {section.get('recipe')}, calibrated on {calibration.get('samples')} samples of {calibration.get('from')}")
    if budget.get("asked") is not None:
        lines.append(f"budget asked {budget['asked']:.4g}, reached {budget['reached']:.4g}")
    if refitted := section.get("refitted"):
        megabytes = section["compensation"]["bytes"] / 1e6
        lines.append(f"K and V of visual tokens refitted in layers {ranges(tuple(refitted))}, {megabytes:.3g} MB")
    for healing in section.get("healing", []):
        before, after = (f"{healing['divergence'][when]:.6f}" for when in ("before", "after"))
        kept = "" if healing["kept"] else ", not kept"
        lines.append(f"healed: {healing['tune']}, {healing['steps']} steps, divergence {before} to {after} nats{kept}")
    return lines
