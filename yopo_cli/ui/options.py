"""Options that several commands share, and the files that users name in them."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from converters.errors import YopoError
from converters.export.loading import Runtime
from converters.loading import Dtype
from converters.runtime.plan import Grid, Plan, PlanError, from_json


class Compensation(StrEnum):
    """What makes up for visual work that a plan leaves out."""

    REFIT = "refit"
    NONE = "none"


SAMPLES = 128  # questions that plans are made on, unless --samples says otherwise

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps (default: a GPU if there is one).")]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Number format; auto: the checkpoint's own on a GPU, float32 on a CPU if that fits, else bfloat16.")
]
RuntimeOption = Annotated[Runtime, typer.Option(help="What runs the model: PyTorch, or ONNX Runtime what `yopo export` wrote.")]
AllowCpu = Annotated[bool, typer.Option("--allow-cpu", help="With --runtime onnx: run on the CPU where the asked device cannot be had.")]


def read_plan(file: Path) -> Plan:
    """A plan from a file: bare, or as the `plan` of what `--json` printed. Raises YopoError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise YopoError(f"The plan {file} cannot be read: {error.strerror}.", "Check the path.") from None
    except ValueError as error:
        raise YopoError(f"The plan {file} is not JSON: {error}.", "Make one: yopo convert MODEL --budget 0.25 --dry-run --json") from None
    if isinstance(data, dict) and "schema" not in data and "plan" in data:
        data = data["plan"]
    try:
        return from_json(data)
    except PlanError as error:
        hint = "A newer version of yopo may have made it. `yopo convert MODEL --budget 0.25 --dry-run --json` makes one for this version."
        raise YopoError(f"The plan {file} cannot be used: {error}.", hint) from None


def parse_grid(text: str | None) -> Grid | None:
    """`24x24`, or `24x24x8` for eight frames. Raises typer.BadParameter."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a grid; write rows x columns, such as 24x24.", param_hint="--grid")
    return Grid(*map(int, parts))
