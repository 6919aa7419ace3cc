"""From what was typed to a directory: a short name, a repository of the Hugging Face Hub, or a folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..families.names import SHORT_NAMES

CONFIG = "config.json"
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "README.md", "LICEN[SC]E*", "NOTICE*")
REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
FORMS = "Give a short name (`yopo models` lists them), a Hub id such as llava-hf/llava-1.5-7b-hf[@revision], or a folder."
SILENCE_SECONDS = 30.0
TOKEN = "Accept its terms on the Hub and log in with `hf auth login`, or set HF_TOKEN."


@dataclass(frozen=True)
class Source:
    """Where a model comes from. `name` is short, for default output folders; `revision` is the Hub's commit."""

    name: str
    path: Path
    repository: str | None = None
    revision: str | None = None


def resolve(model: str, weights: bool = True) -> Source:
    """Find the model, downloading what is not in the Hub's cache yet; HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE hold as usual.

    Short names come first: a folder of the same name is `./NAME`. Without `weights` only config.json is fetched. Raises YopoError.
    """
    if model and model not in SHORT_NAMES and Path(model).expanduser().is_dir():
        path = Path(model).expanduser()
        return Source(path.resolve().name, path)
    if model not in SHORT_NAMES and Path(model).expanduser().is_file():
        raise YopoError(f"{model} is a file, not the folder of a checkpoint.", FORMS)
    match = REPOSITORY.fullmatch(SHORT_NAMES.get(model, model))
    if match is None or model.startswith("."):
        raise YopoError(f"There is no model {model!r}.", FORMS)
    repository, revision = match["repository"], match["revision"]
    path = _download(repository, revision) if weights else _snapshot(repository, revision, [CONFIG])
    name = model if model in SHORT_NAMES else repository.partition("/")[2]
    return Source(name, path, repository, path.name)


def _download(repository: str, revision: str | None) -> Path:
    path = _snapshot(repository, revision, [*SMALL_FILES, "*.safetensors"])
    return path if any(path.glob("*.safetensors")) else _snapshot(repository, revision, [*SMALL_FILES, "*.bin"])


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """The local folder of a repository's commit. Files in sub-folders (other formats of the same weights) are left out."""
    from huggingface_hub import snapshot_download  # imported where the Hub is asked: folders are found without it

    limit_silence()
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # of an answer that makes no sense the Hub's client raises what it likes
        raise explained(error, repository, revision) from error


def limit_silence() -> None:
    """Let no request to the Hub wait longer than `SILENCE_SECONDS` for a sign of life; some of its client's have no limit of their own."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _limit_silence not in hooks:
        hooks.append(_limit_silence)


def _limit_silence(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        name: SILENCE_SECONDS if limits.get(name) is None else limits[name] for name in ("connect", "read", "write", "pool")
    }


def explained(error: Exception, repository: str, revision: str | None, what: str = "repository") -> YopoError:
    """The sentence for what the Hub's client raised; the order matters, some are kinds of others."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return YopoError(f"The {what} {repository} is gated.", TOKEN)
    if isinstance(error, RepositoryNotFoundError):
        return YopoError(f"The Hub has no {what} {repository}, or it is private.", f"{FORMS} For a private one set HF_TOKEN.")
    if isinstance(error, RevisionNotFoundError):
        return YopoError(f"The {what} {repository} has no revision {revision!r}.", "Give a branch, a tag or a full commit hash.")
    if isinstance(error, HFValidationError):
        return YopoError(f"{repository!r} cannot be the name of a repository on the Hub.", FORMS)
    if isinstance(error, HfHubHTTPError):
        return _status(error, repository)
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return _not_cached(error, repository)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError) and error.errno is not None:
        return YopoError(f"Fetching {repository} failed: {error.strerror}", "Run the command again: files that have arrived are kept.")
    return YopoError(
        f"What the Hub answered about {repository} cannot be used: {reason:.300}",
        "Check the network, HF_ENDPOINT and proxies, and run the command again: files that have arrived are kept.",
    )


def _status(error: Any, repository: str) -> YopoError:
    """The sentence for an answer of the Hub by its HTTP status."""
    status = error.response.status_code
    about = f"about {repository} (HTTP {status})."
    if status in (401, 403):
        return YopoError(f"The Hub refuses access to {repository} (HTTP {status}).", TOKEN)
    if status == 404:
        return YopoError(f"The Hub knows nothing {about}", FORMS)
    if status == 429:
        return YopoError(f"The Hub has had too many requests and answers nothing {about}", "Wait a while, or log in with `hf auth login`.")
    if status >= 500:
        return YopoError(f"The Hub has a fault of its own and answers nothing {about}", "Run the command again later.")
    return YopoError(f"The Hub does not answer {about}", "Check the network, HF_ENDPOINT and proxies.")


def _not_cached(error: Exception, repository: str) -> YopoError:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return explained(cause, repository, None)
    if isinstance(error, OfflineModeIsEnabled) or isinstance(cause, OfflineModeIsEnabled):
        return YopoError(
            f"{repository} is not in the cache, or not all of it, and offline mode is on.", "Unset HF_HUB_OFFLINE, or give a folder."
        )
    if "Timeout" in type(cause).__name__:
        return YopoError(
            f"The Hub said nothing for {SILENCE_SECONDS:g} seconds, and {repository} is not in the cache, or not all of it.",
            "Check the network, or give a folder.",
        )
    return YopoError(
        f"The Hub cannot be reached, and {repository} is not in the cache, or not all of it.", "Check the network, or give a folder."
    )
