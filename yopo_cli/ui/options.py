"""Options that several commands share."""

import re
import shlex
from enum import StrEnum
from typing import Annotated

import typer

from converters.export.loading import Runtime
from converters.loading import Dtype
from converters.runtime.plan import MAX_VISUAL_TOKENS, Grid


class Compensation(StrEnum):
    """What makes up for visual work that a plan leaves out."""

    REFIT = "refit"
    NONE = "none"


class Engine(StrEnum):
    """Engines that serve plans of a kind."""

    VLLM = "vllm"


NOT_PART = ("output", "device", "device_map", "answers", "micro_batch", "recompute", "dry_run", "force", "as_json")
SAMPLES = 128  # questions that plans are made on, unless --samples says otherwise

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps (default: a GPU if there is one).")]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(metavar="auto", help="auto: layers that the device has no room for wait in memory, then on disk. Needs yopo\\[heal]."),
]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Number format; auto: the checkpoint's own on a GPU, float32 on a CPU if that fits, else bfloat16.")
]
For = Annotated[Engine | None, typer.Option("--for", help="vllm: only plans that its plugin serves: no window of visual tokens.")]
EFFORT = "thorough"  # of a search, unless --effort says otherwise
EffortOption = Annotated[str, typer.Option(help="Of the search: quick, usual, thorough, or a number of forward passes of the questions.")]
RuntimeOption = Annotated[Runtime, typer.Option(help="What runs the model: PyTorch, or ONNX Runtime what `yopo export` wrote.")]
AllowCpu = Annotated[bool, typer.Option("--allow-cpu", help="With --runtime onnx: run on the CPU where the asked device cannot be had.")]


def parse_grid(text: str | None) -> Grid | None:
    """`24x24`, or `24x24x8` for eight frames. Raises typer.BadParameter."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise typer.BadParameter(f"{text!r:.80} is not a grid; write rows x columns, such as 24x24.", param_hint="--grid")
    grid = Grid(*map(int, parts))
    if grid.tokens > MAX_VISUAL_TOKENS:
        raise typer.BadParameter(f"{text} has {grid.tokens:,} visual tokens, more than {MAX_VISUAL_TOKENS:,}.", param_hint="--grid")
    return grid


def command_line(context: typer.Context) -> str:
    """The command as it can be typed again, without what is not part of what it makes: where it runs, and where it writes."""
    words = ["yopo", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in NOT_PART or value in (None, parameter.get_default(context)):
            continue
        option = [name for name in parameter.opts if name.startswith("--")]
        words += [*option, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
