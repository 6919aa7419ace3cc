"""`yopo push`: a converted model on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..ui.options import Json
from ..ui.progress import listening
from ..ui.terminal import show_json, show_text


def push(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that convert, heal or export wrote.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub; made where it is not there.")],
    revision: Annotated[str, typer.Option(help="The branch to push to; made from main where it is not there.")] = "main",
    private: Annotated[bool, typer.Option("--private", help="A repository that others may not see.")] = False,
    as_json: Json = False,
) -> None:
    """Push a model with its card to the Hub, its files checked before. HF_TOKEN or `hf auth login` says who pushes."""
    from converters.checkpoint.push import push

    with listening() as progress:
        done = push(folder, repository, revision=revision, private=private, progress=progress)
    if as_json:
        show_json(done.to_json())
    else:
        show_text([f"Pushed to {done.repository}@{done.revision}, commit {done.commit[:12]}", done.url])
