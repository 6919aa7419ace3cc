"""The dense model that a pipeline begins with: its sizes and, where its files are here, what it is."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint.source import REPOSITORY
from ..conversion import merged_model
from ..errors import YopoError
from ..families import family_of, sizes_and_grids
from ..families.names import SHORT_NAMES
from ..loading import DEMO, locate_config
from ..model import Model, load
from ..progress import Listener
from ..runtime.plan import Grid, Sizes
from .file import Pipeline
from .hashes import content_sha256, model_sha256
from .steps import NOT_MADE, WORK, Performer, Step


@dataclass(frozen=True)
class Subject:
    """`bytes` are those of its weights, None where that is not known; `opened` is None where only its config was fetched."""

    name: str
    sizes: Sizes
    grids: tuple[Grid, ...]
    sha256: str
    bytes: int | None
    opened: Model | None

    @property
    def model(self) -> Model:
        assert self.opened is not None, "a forecast does nothing"
        return self.opened


def subject(model: str, device: str | None, dtype: str) -> Subject:
    """The model, fetched if need be. Raises YopoError for what is no dense model."""
    opened = load(model, device=device, dtype=dtype).dense()
    checkpoint = opened.checkpoint
    return Subject(opened.name, checkpoint.sizes, checkpoint.grids, model_sha256(opened), checkpoint.bytes, opened)


def forecast_subject(model: str, device: str | None, dtype: str) -> Subject:
    """The model where it is here; of one of the Hub that was not fetched yet, what its config says."""
    if model == DEMO or Path(model).is_dir() or _cached(model):
        return subject(model, device, dtype)
    name, config = locate_config(model)
    sizes, grids = sizes_and_grids(family_of(config), config)
    return Subject(name, sizes, grids, NOT_MADE, None, None)


def adapted(pipeline: Pipeline, dense: Subject, perform: Performer, progress: Listener) -> Subject:
    """The model with the pipeline's adapter merged into it, as a step; itself where there is none. Raises YopoError."""
    if pipeline.parts.adapter is None:
        return dense
    adapter = Path(pipeline.place(pipeline.parts.adapter))
    if not adapter.is_dir():
        raise YopoError(f"{adapter} is no folder.", "Give the folder of a LoRA adapter, as PEFT saves it.")
    name = f"{dense.name}+{adapter.resolve().name}"

    def make(path: Path) -> None:
        merged_model(dense.model, adapter, path.parent, pipeline.command, progress)

    inputs = {"model": dense.sha256, "adapter": content_sha256(adapter), "command": pipeline.command}
    made = perform(Step(f"merge {adapter.name}", f"{WORK}/{name}", inputs, make, dense.bytes))
    if made.sha256 == NOT_MADE:
        return replace(dense, name=name, sha256=NOT_MADE)
    return subject(str(made.path), dense.model.device, dense.model.dtype)


def _cached(model: str) -> bool:
    """Whether the Hub's cache has the model's weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    match = REPOSITORY.fullmatch(SHORT_NAMES.get(model, model))
    if match is None:
        return True  # which is no model at all: opening it says so
    try:
        folder = Path(snapshot_download(match["repository"], revision=match["revision"], local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return False
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
