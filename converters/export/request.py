"""What is asked of an export, and what it tells about what it made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.reader import Checkpoint
from ..runtime.plan import Grid, Plan

if TYPE_CHECKING:
    from .onnx.parity import Runnable

DTYPES = ("float32", "float16")
"""What graphs compute in."""


@dataclass(frozen=True)
class Request:
    """One export. `plan` is None for a dense model; `output` None puts the graphs beside the checkpoint's own files, to which they refer.

    `name` and `revision` are those of the repository that the model comes from, None for one that is nowhere but here. `bits`: 4 or 8 for
    quantised weights of the language model, else None. `compare` holds the finished graphs against the PyTorch runtime and gives its
    JSON-ready report, or raises YopoError; None: it is not compared.
    """

    checkpoint: Checkpoint
    plan: Plan | None
    grids: tuple[Grid, ...]
    output: Path | None = None
    name: str | None = None
    revision: str | None = None
    opset: int = 23
    dtype: str = "float32"
    bits: int | None = None
    force: bool = False
    compare: "Callable[[Runnable], Mapping[str, Any]] | None" = None
    say: Callable[[str], None] = lambda text: None

    @property
    def folder(self) -> Path:
        """Where the graphs go."""
        return self.checkpoint.path if self.output is None else self.output


@dataclass(frozen=True)
class Report:
    """What was written: `files` with their bytes.

    `added_bytes`: graphs, and weights in another order or form than the checkpoint's; `copied_bytes`: tensors as they are, because the
    graphs lie elsewhere; `checkpoint_bytes`: the checkpoint's tensors. `parity` is JSON-ready, None where nothing was compared;
    `facts` are the target's own.
    """

    target: str
    folder: Path
    files: Mapping[str, int]
    checkpoint_bytes: int
    added_bytes: int
    copied_bytes: int
    notes: tuple[str, ...] = ()
    parity: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
