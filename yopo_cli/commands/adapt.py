"""`yopo adapt`: an adapter of the dense model, for a pruned one."""

from pathlib import Path
from typing import Annotated

import typer

from ..ui.options import Json
from ..ui.terminal import say, show_json, show_text


def adapt(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder that PEFT wrote: LoRA, rsLoRA or DoRA of the dense model.")],
    to: Annotated[str, typer.Option("--to", metavar="OUT", help="The pruned model that it is for: a folder or a Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Put an adapter that was trained on the dense model in the order of heads and neurons of a pruned one."""
    from converters.adapters.adapt import adapt

    done = adapt(adapter, to, output, force=force)
    if done.unreached:
        say(
            f"Note: in {len(done.unreached)} layers K and V of visual tokens have projections of their own, which no adapter reaches. "
            "`yopo convert MODEL --adapter ADAPTER` fits them anew."
        )
    if as_json:
        show_json(done.to_json())
    else:
        show_text([f"Wrote {done.output}: {done.modules} modules, {done.reordered} of them reordered."])
