"""To the Hugging Face Hub: a folder as one commit of a model repository, of which it then is all there is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..progress import Listener, Message, unheard
from .card import licence
from .manifest import MANIFEST, changed_files, read_manifest
from .source import TOKEN, explained

MAIN = "main"
HIDDEN = [".*", "**/.*"]
OF_THE_HUB = {".gitattributes", "README.md", MANIFEST}
"""Files that a new repository may have."""


@dataclass(frozen=True)
class Pushed:
    """What was pushed: `revision` is the branch, `commit` the Hub's hash, `licence` what the card states, None for nothing."""

    folder: str
    repository: str
    revision: str
    commit: str
    url: str
    licence: str | None
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return asdict(self)


def push(
    folder: Path | str, repository: str, *, revision: str = MAIN, private: bool = False, progress: Listener = unheard
) -> Pushed:  # fmt: skip
    """Push what yopo wrote to OWNER/NAME, which is made where it is not there; `private` for one that others may not see.

    `revision` is a branch, made from main. Files that are on it and not in the folder go; HF_TOKEN or `hf auth login` says who pushes.
    Raises YopoError for files that were changed, a public repository where a private one is asked for, files there that are not
    yopo's, and what the Hub refuses.
    """
    folder = Path(folder)
    files = _checked(folder)
    stated = licence(folder).get("license")
    if stated is None:
        progress(
            Message(f"{folder} states no licence: its base model came without one. Ask its authors before passing it on.", warning=True)
        )
    progress(Message(f"Pushing {folder} to {repository}@{revision}."))
    try:
        commit = _commit(folder, repository, revision, private)
    except YopoError:
        raise
    except Exception as error:  # of an answer that makes no sense the Hub's client raises what it likes
        raise _push_error(error, repository, revision) from error
    size = sum((folder / name).stat().st_size for name in files)
    return Pushed(str(folder), repository, revision, str(commit.oid), str(commit.commit_url), stated, size)


def _checked(folder: Path) -> dict[str, str]:
    """The hashes of the folder's files. Raises YopoError unless they are as yopo wrote them."""
    if not folder.is_dir():
        raise YopoError(f"{folder} is not a folder.", "Give one that `yopo convert`, `yopo heal` or `yopo export` wrote.")
    files = read_manifest(folder)
    if not files:
        raise YopoError(f"{folder} has no {MANIFEST}: yopo did not write it.", "Convert a model first: yopo convert MODEL --budget 0.25")
    if changed := changed_files(folder, files):
        raise YopoError(
            f"{folder} was changed after it was written: {', '.join(changed)}.", "Convert the model again, or restore the files."
        )
    return files


def _commit(folder: Path, repository: str, revision: str, private: bool) -> Any:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise YopoError(f"{repository} is there already, and public.", "Push to another one, or make it private on the Hub first.")
    if revision != MAIN:
        api.create_branch(repository, branch=revision, exist_ok=True)
    there = set(api.list_repo_files(repository, revision=revision))
    if MANIFEST not in there and (foreign := sorted(there - OF_THE_HUB)):
        raise YopoError(
            f"{repository}@{revision} has files that are not yopo's: {foreign[0]}.", "Push to another one, or to a new --revision."
        )
    return api.upload_folder(
        repo_id=repository, folder_path=folder, revision=revision, commit_message=f"{folder.name}, by yopo",
        ignore_patterns=HIDDEN, delete_patterns="*",
    )  # fmt: skip


def _push_error(error: Exception, repository: str, revision: str) -> YopoError:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return YopoError("Offline mode is on: nothing can be pushed.", "Unset HF_HUB_OFFLINE.")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return YopoError(f"The Hub does not let you write to {repository} (HTTP {error.response.status_code}).", TOKEN)
    return explained(error, repository, revision)
