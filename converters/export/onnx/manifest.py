"""`onnx.json`: what an export consists of and how it is to be called. Written last, so a folder without it holds no export."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...checkpoint.manifest import is_exported
from ...errors import YopoError
from ...json_files import read_object
from ...runtime.plan import Grid

MANIFEST = "onnx.json"
SCHEMA = 1
AGAIN = "Export the model again: yopo export."


@dataclass(frozen=True)
class Manifest:
    """An export for onnxruntime.

    File names: `vision` and `prefill` by grid (`24x24`), `continuation`, `embedding`, and `dense`, the same weights with the plan
    switched off (None where the model has no plan). `files` has the sha256 of each. `tile` is the grid that comes before a picture's own.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    version: str
    target: str
    dtype: str
    bits: int | None
    opset: int
    grids: tuple[str, ...]
    vision: Mapping[str, str]
    embedding: str
    prefill: Mapping[str, str]
    continuation: str
    dense: str | None
    image_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    multimodal_positions: bool
    merge: int
    max_positions: int
    tile: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def whole(self, grid: Grid) -> tuple[Grid, ...]:
        """The grids of a picture of which this is the last."""
        return (grid,) if self.tile is None else (parse_grid(self.tile), grid)

    def tokens(self, grid: Grid) -> int:
        """Of a picture."""
        return sum(part.tokens for part in self.whole(grid))

    @property
    def named(self) -> set[str]:
        """Every file that it names."""
        graphs = [*self.vision.values(), *self.prefill.values(), self.embedding, self.continuation, self.dense]
        return {*self.files, *(name for name in graphs if name is not None)}


def write(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """Raises YopoError where there is no export, or one of another version."""
    if not (folder / MANIFEST).is_file():
        raise YopoError(f"{folder} holds no export for onnxruntime.", f"Make one: yopo export {folder}")
    data = read_object(folder / MANIFEST, AGAIN)
    if data.get("schema") != SCHEMA:
        raise YopoError(f"{folder / MANIFEST} has the schema {data.get('schema')!r}, this version reads {SCHEMA}.", AGAIN)
    try:
        found = TypeAdapter(Manifest).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise YopoError(f"{folder / MANIFEST} is not what this version writes: {error.errors()[0]['msg']}.", AGAIN) from None
    if foreign := sorted(name for name in found.named if "/" in name or "\\" in name or not is_exported(name)):
        raise YopoError(f"{folder / MANIFEST} names {foreign[0]!r}, which is no file of an export.", AGAIN)
    return found


def parse_grid(text: str) -> Grid:
    return Grid(*map(int, text.split("x")))
