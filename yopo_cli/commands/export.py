"""`yopo export`: a model for runtimes without PyTorch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.loading import Dtype

from ..ui.costs import count_text, share_text
from ..ui.options import Json, parse_grid
from ..ui.progress import listening
from ..ui.terminal import show_json, show_table, show_text

DEFAULT_OPSET, FIRST_OPSET, LAST_OPSET = 23, 18, 25


class ExportTarget(StrEnum):
    """Runtimes that packages are made for."""

    ONNXRUNTIME = "onnxruntime"
    GENAI = "genai"
    TRANSFORMERS_JS = "transformers-js"


def export(
    model: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A converted model, or a dense one.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder of its own, with copies (default: beside OUT's own weights).")
    ] = None,
    target: Annotated[ExportTarget, typer.Option(help="What is to run it.")] = ExportTarget.ONNXRUNTIME,
    grid: Annotated[
        list[str] | None, typer.Option(help="Visual grid, such as 24x24; may be repeated where the vision tower takes any size.")
    ] = None,
    opset: Annotated[int, typer.Option(min=FIRST_OPSET, max=LAST_OPSET, help="Version of the ONNX operators.")] = DEFAULT_OPSET,
    dtype: Annotated[Dtype, typer.Option(help="What graphs compute in; auto: float16 for float16 weights, else float32.")] = Dtype.AUTO,
    int8: Annotated[bool, typer.Option("--int8", help="Weights of the language model in 8 bits, for CPUs.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="In 4 bits.")] = False,
    parity: Annotated[bool, typer.Option(help="Compare logits and greedy tokens with PyTorch's.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export, or the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX graphs that do only the visual work of its plan, over the same weights."""
    if int4 and int8:
        raise typer.BadParameter("choose one of --int4 and --int8.", param_hint="--int4 / --int8")
    from converters.api import export, load

    grids = tuple(found for text in grid or () if (found := parse_grid(text)) is not None)
    bits = 4 if int4 else 8 if int8 else None
    with listening() as progress:
        report = export(
            load(model), output, target=target.value, grids=grids, opset=opset, dtype=dtype, bits=bits, parity=parity, force=force,
            progress=progress,
        )  # fmt: skip
    if as_json:
        show_json({**report.to_json(), "model": model})
    else:
        _show(report)


def _show(report: Any) -> None:
    show_table(("file", "bytes"), [(name, count_text(size)) for name, size in report.files.items()])
    rows = [("checkpoint", report.checkpoint_bytes), ("added", report.added_bytes), ("copied as it is", report.copied_bytes)]
    shares = [(what, count_text(size), share_text(size / report.checkpoint_bytes)) for what, size in rows]
    show_table(("on disk", "bytes", "of checkpoint"), shares)
    if report.parity is not None:
        show_table(("compared with PyTorch", "largest difference", "of logits up to", "greedy tokens equal"), _parity_rows(report.parity))
    show_text([f"Note: {note}" for note in report.notes])
    show_text([f"Wrote {report.folder}"])


def _parity_rows(parity: Any) -> list[tuple[str, ...]]:
    return [
        (name, f"{one['largest_difference']:.1e}", f"{one['largest_logit']:.3g}", f"{one['equal_tokens']} of {one['all_tokens']}")
        for name, one in parity["prompts"].items()
    ]
