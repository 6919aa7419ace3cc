"""`onnx.json`: what an export consists of and how it is to be called. Written last, so a folder without it holds no export."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import YopoError
from ...runtime.plan import Grid

MANIFEST = "onnx.json"
SCHEMA = 1
AGAIN = "Export the model again: yopo export."


@dataclass(frozen=True)
class Manifest:
    """An export for onnxruntime.

    File names: `vision` and `prefill` by grid (`24x24`), `continuation`, `embedding`, and `dense`, the same weights with the plan
    switched off (None where the model has no plan). `files` has the sha256 of each.
    """

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
    files: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def write(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """Raises YopoError where there is no export, or one of another version."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise YopoError(f"{folder} holds no export for onnxruntime.", f"Make one: yopo export {folder}") from None
    except ValueError as error:
        raise YopoError(f"{folder / MANIFEST} is not JSON: {error}.", AGAIN) from None
    if data.get("schema") != SCHEMA:
        raise YopoError(f"{folder / MANIFEST} has the schema {data.get('schema')!r}, this version reads {SCHEMA}.", AGAIN)
    try:
        lists = {name: tuple(data[name]) for name in ("grids", "image_tokens", "end_tokens")}
        return Manifest(**{**data, **lists})
    except (TypeError, KeyError) as error:
        raise YopoError(f"{folder / MANIFEST} is not what this version writes: {error}.", AGAIN) from None


def parse_grid(text: str) -> Grid:
    return Grid(*map(int, text.split("x")))
