"""What is asked of an export, and what it tells about what it made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..runtime.plan import Grid, Plan

DTYPES = ("float32", "float16")
"""What graphs compute in."""


@dataclass(frozen=True)
class Request:
    """One export. `plan` is None for a dense model; `output` None puts the graphs beside the checkpoint's own files, to which they refer.

    `bits`: 4 or 8 for quantised weights of the language model, else None. `parity` compares answers with the PyTorch runtime's.
    """

    name: str
    revision: str | None
    checkpoint: Checkpoint
    plan: Plan | None
    output: Path | None
    grids: tuple[Grid, ...]
    opset: int = 23
    dtype: str = "float32"
    bits: int | None = None
    masked: bool = False
    parity: bool = True
    force: bool = False
    say: Callable[[str], None] = lambda text: None

    @property
    def folder(self) -> Path:
        """Where the graphs go."""
        return self.checkpoint.path if self.output is None else self.output


@dataclass(frozen=True)
class Report:
    """What was written. `added_bytes`: weights in another order or form than in the checkpoint, and the graphs; `copied_bytes`: tensors as they are,
    because the graphs lie elsewhere; `checkpoint_bytes`: the checkpoint's own tensors. `parity` is JSON-ready, None where it was not asked for."""

    target: str
    folder: Path
    files: Mapping[str, int]
    checkpoint_bytes: int
    added_bytes: int
    copied_bytes: int
    notes: tuple[str, ...] = ()
    parity: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
