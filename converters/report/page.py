"""The report as one HTML file that needs nothing else, and as Markdown for a summary in CI."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from ..inspection import Inspection
from ..runtime.plan import Plan
from .charts import budget_chart, distance_chart, flops_chart, kinds_chart, plan_chart, read_chart
from .gathering import Data, Report

MOST_CHANGED = 60  # answers shown
Row = tuple[str, ...]


def html(report: Report, title: str) -> str:
    """The page."""
    from jinja2 import Environment

    text = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    return template.render(
        title=title,
        version=version("yopo"),
        tasks=[_task(report, name) for name in report.tasks],
        models=[_model(one) for one in report.models],
        attention=[_attention(name, maps, _plan(report)) for name, maps in report.attention],
        times=[_times(one) for one in report.benches],
        changed=report.changed[:MOST_CHANGED],
        changed_in_all=len(report.changed),
        origins=[_origin(one) for one in report.evaluations],
    )


def _plan(report: Report) -> Plan | None:
    """The plan that is drawn over attention maps: the first model's that has one."""
    return next((one.plan for one in report.models if one.family is None), None)


def _task(report: Report, name: str) -> dict[str, Any]:
    points: dict[str, list[tuple[float, Data]]] = {}
    kinds: Data = {}
    for evaluation in report.evaluations:
        if name not in evaluation["tasks"]:
            continue
        task = evaluation["tasks"][name]
        kinds = kinds or task["kinds"]
        for side, one in task["sides"].items():
            headline = next(iter(one["figures"].values()))
            share = evaluation["executed"][side].get("visual_share")
            if headline["value"] is not None and share is not None:
                points.setdefault(side, []).append((share, headline))
    return {
        "name": name,
        "budget": budget_chart(name, points) if points else None,
        "kinds": kinds_chart(name, kinds) if kinds else None,
        "rows": list(task_rows(report, name)),
    }


TASK_COLUMNS = ("model", "side", "visual FLOPs", "score", "95 %", "kept", "95 %", "lost / won", "p", "published")


def task_rows(report: Report, name: str) -> Iterator[Row]:
    """A row for each side of each evaluation."""
    for evaluation in report.evaluations:
        for side, one in evaluation["tasks"].get(name, {"sides": {}})["sides"].items():
            headline, kept = next(iter(one["figures"].values())), one.get("retention") or {}
            share = evaluation["executed"][side].get("visual_share")
            yield (
                evaluation["model"],
                side,
                "-" if share is None else f"{share:.1%}",
                "-" if headline["value"] is None else f"{headline['value']:.2f}",
                _range(headline, 1),
                f"{kept['value']:.1%}" if kept else "-",
                _range(kept, 100),
                f"{one['lost']} / {one['won']}" if one.get("lost") is not None else "-",
                f"{one['p_value']:.2g}" if one.get("p_value") is not None else "-",
                f"{one['published']:g}" if one.get("published") else "-",
            )


def _range(value: Mapping[str, Any], scale: int) -> str:
    return "-" if value.get("low") is None else f"{scale * value['low']:.1f} to {scale * value['high']:.1f}"


def _model(one: Inspection) -> dict[str, Any]:
    """A plan's pictures and its cost."""
    return {
        "name": one.name,
        "facts": list(_facts(one)),
        "plan": plan_chart(one.name, one.plan) if one.family is None else None,
        "flops": flops_chart(one.name, one.plan),
        "costs": list(cost_rows(one)),
    }


def _facts(one: Inspection) -> Iterator[str]:
    base, calibration = one.section.get("base", {}), one.section.get("calibration")
    if base:
        revision = f"@{base['revision'][:12]}" if base.get("revision") else ""
        yield f"base {base.get('repository') or base.get('name')}{revision}, converted by yopo {one.section.get('version')}"
    if calibration:
        yield f"recipe {one.section.get('recipe')}, calibrated on {calibration.get('samples')} samples of {calibration.get('from')}"


def cost_rows(one: Inspection) -> Iterator[Row]:
    """What, dense, pruned, share."""
    costs = one.costs
    with_text = f"with {costs.flops.text_tokens} text tokens"
    for what, dense, pruned, unit, scale in (
        ("visual FLOPs", costs.flops.visual_dense, costs.flops.visual, "GFLOPs", 1e9),
        (f"FLOPs {with_text}", costs.flops.total_dense, costs.flops.total, "GFLOPs", 1e9),
        (f"K and V {with_text}", costs.cache_dense, costs.cache, "MB", 1e6),
    ):
        yield what, f"{dense / scale:.3g} {unit}", f"{pruned / scale:.3g} {unit}", f"{pruned / dense:.1%}"


def _attention(name: str, maps: Data, plan: Plan | None) -> dict[str, Any]:
    fits = plan is not None and (plan.sizes.num_hidden_layers, plan.sizes.num_attention_heads) == (len(maps["read"]), len(maps["read"][0]))
    over = plan if fits else None
    return {
        "name": name,
        "samples": maps["samples"],
        "framed": over is not None,
        "read": read_chart(name, maps["read"], over),
        "distance": distance_chart(name, maps["by_distance"], over),
    }


TIME_COLUMNS = ("visual tokens", "batch", "side", "visual FLOPs", "prefill s", "of dense", "decoding of dense", "K and V MB")


def _times(bench: Data) -> dict[str, Any]:
    return {"name": f"{bench['model']}, {bench['device_name']}, {bench['dtype']}", "rows": list(time_rows(bench))}


def time_rows(bench: Data) -> Iterator[Row]:
    """A row for each side of each run of a bench record."""
    for run in bench["runs"]:
        for side in run["sides"]:
            prefill, decode = side["prefill"], side.get("decode")
            yield (
                str(run["visual_tokens"]),
                str(run["batch"]),
                side["name"] if side["budget"] is None else f"{side['name']} {side['budget']:g}",
                f"{side['visual_share']:.1%}",
                f"{prefill['seconds']:.3f}",
                f"{prefill['ratio']:.3f}",
                f"{decode['ratio']:.3f}" if decode else "-",
                f"{side['kv_bytes'] / 1e6:.1f}",
            )


def _origin(evaluation: Data) -> list[str]:
    """How an evaluation was made."""
    versions = ", ".join(f"{name} {number}" for name, number in evaluation["versions"].items())
    lines = [
        f"{evaluation['model']}: protocol {evaluation['protocol']}, {evaluation['batch_size']} questions at a time, "
        f"{evaluation['dtype']} on {evaluation['device']}, {versions}, yopo {evaluation['yopo']}"
    ]
    for name, task in evaluation["tasks"].items():
        origin = task["origin"]
        place = origin.get("place") or f"{origin['repository']}@{origin['revision']}"
        lines.append(f"{name}: {origin['asked']} of {origin['questions']} questions about {task['pictures']} pictures of {place}")
    return lines


def markdown(report: Report, title: str) -> str:
    """Tables alone."""
    parts = [f"# {title}"]
    for name in report.tasks:
        parts += [f"## {name}", _table(TASK_COLUMNS, task_rows(report, name))]
    for one in report.models:
        parts += [f"## {one.name}", *_facts(one), _table(("prefill", "dense", "pruned", "share"), cost_rows(one))]
    for bench in report.benches:
        parts += [f"## Times: {bench['model']}", _table(TIME_COLUMNS, time_rows(bench))]
    if report.changed:
        lost = sum("lost" in line["changed"].values() for line in report.changed)
        parts.append(f"{len(report.changed)} questions have an answer that changed; {lost} of them lost a right one.")
    parts += ["\n".join(f"- {line}" for one in report.evaluations for line in _origin(one))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(columns: Row, rows: Iterator[Row]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
