"""`yopo ask`: one question about one picture or several."""

from pathlib import Path
from typing import Annotated

import typer

from converters.loading import Dtype

from ..ui.options import Device, DtypeOption, Json
from ..ui.terminal import say, show_json, show_text


def ask(
    model: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A converted model, or a dense one.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; give several for several pictures.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Json = False,
) -> None:
    """Ask a model a question about pictures; without a picture, a question in words alone."""
    from converters.api import ask, load

    answer = ask(load(model, device=device, dtype=dtype), question, image or [], max_new_tokens=max_new_tokens)
    say(f"Path: {answer.path}")
    if as_json:
        show_json({"model": model, "question": question, **answer.to_json()})
    else:
        show_text([answer.text])
