"""`yopo inspect`: what a plan does and what it costs, without reading a weight."""

from typing import Annotated, Any

import typer

from converters.inspection import Inspection
from converters.inspection import inspect as look_at
from converters.runtime.plan import Plan, ranges

from ..ui.costs import cost_table, dense_table
from ..ui.options import Json
from ..ui.picture import picture
from ..ui.terminal import show_json, show_table, show_text


def inspect(
    model: Annotated[str, typer.Argument(metavar="OUT|PLAN.json|MODEL", help="A converted model, a plan, or a dense model.")],
    as_json: Json = False,
) -> None:
    """Show a plan: a picture of every layer, and its cost in all four ways of counting. Reads no weights."""
    found = look_at(model)
    if as_json:
        show_json(found.to_json())
    elif found.family is None:
        _show_plan(found)
    else:
        show_text([f"{found.name}, a dense {found.family}: {_sizes(found.plan)}", ""])
        show_table(*dense_table(found.costs))


def _show_plan(found: Inspection) -> None:
    show_text([f"{found.name}: {_sizes(found.plan)}", *_origin(dict(found.section)), "", *picture(found.plan), ""])
    show_table(*cost_table(found.costs))


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
