"""`yopo inspect`: what a plan does and what it costs, without reading a weight."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.data.samples import BUNDLED
from converters.inspection import Inspection
from converters.inspection import inspect as look_at
from converters.runtime.plan import Plan, ranges

from ..ui.costs import cost_table, dense_table
from ..ui.options import Json
from ..ui.picture import picture
from ..ui.progress import listening
from ..ui.terminal import say, show_json, show_table, show_text


def inspect(
    model: Annotated[str, typer.Argument(metavar="OUT|PLAN.json|MODEL", help="A converted model, a plan, or a dense model.")],
    attention: Annotated[
        Path | None, typer.Option(help="Measure what the dense model's heads look at, and write it to this JSON file for `yopo report`.")
    ] = None,
    calibration: Annotated[str, typer.Option(help="With --attention: the questions it is measured on.")] = BUNDLED,
    samples: Annotated[int, typer.Option(min=1, help="With --attention: how many of them.")] = 32,
    as_json: Json = False,
) -> None:
    """Show a plan: a picture of every layer, and its cost in all four ways of counting. Reads no weights without --attention."""
    if attention is not None:
        _measure(model, attention, calibration, samples)
        return
    inspection = look_at(model)
    if as_json:
        show_json(inspection.to_json())
    elif inspection.family is None:
        _show_plan(inspection)
    else:
        show_text([f"{inspection.name}, a dense {inspection.family}{_quantised(inspection)}: {_sizes(inspection.plan)}", ""])
        show_table(*dense_table(inspection.costs))


def _measure(model: str, file: Path, calibration: str, samples: int) -> None:
    """Attention maps of a model."""
    from converters.errors import YopoError
    from converters.model import load
    from converters.report.attention import attention_of

    if not file.parent.is_dir():
        raise YopoError(f"The folder {file.parent} does not exist.", "Attention is written to --attention: make it first.")
    with listening() as progress:
        attention = attention_of(load(model), calibration, samples, progress=progress)
    file.write_text(json.dumps(attention.to_json()), encoding="utf-8")
    rows = [(str(layer), f"{sum(row) / len(row):.1%}", f"{max(row):.1%}") for layer, row in enumerate(attention.read)]
    near = [f"{sum(row[:3]):.1%}" for row in attention.by_distance]
    columns = ("layer", "text to visual", "most of a head", "visual to visual within 2")
    show_table(columns, [(*row, within) for row, within in zip(rows, near, strict=True)])
    say(f"Wrote {file}: yopo report {file} -o report.html draws it.")


def _show_plan(inspection: Inspection) -> None:
    show_text(
        [
            f"{inspection.name}{_quantised(inspection)}: {_sizes(inspection.plan)}",
            *_origin(dict(inspection.section)),
            "",
            *picture(inspection.plan),
            "",
        ]
    )
    show_table(*cost_table(inspection.costs))


def _quantised(inspection: Inspection) -> str:
    return "" if inspection.quantised is None else f", quantised ({inspection.quantised})"


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
