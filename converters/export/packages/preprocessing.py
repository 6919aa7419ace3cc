"""Tokenizer, processor and chat template of a checkpoint, in the places where other runtimes look for them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...checkpoint.card import LICENCE_FILES
from ...checkpoint.config import CONFIG
from ...checkpoint.reader import Checkpoint
from ...errors import YopoError
from ...json_files import object_of

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG, PROCESSOR_CONFIG, IMAGE_CONFIG = "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"
GENERATION_CONFIG, TEMPLATE = "generation_config.json", "chat_template.jinja"
NAMES = (
    TOKENIZER, TOKENIZER_CONFIG, "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    PROCESSOR_CONFIG, IMAGE_CONFIG, "video_preprocessor_config.json", GENERATION_CONFIG, TEMPLATE, "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """The files by name, as transformers has them."""

    files: Mapping[str, bytes]

    def json(self, name: str) -> dict[str, Any]:
        """The object of a file, {} where there is none."""
        return object_of(self.files[name], name, "Fetch it again.") if name in self.files else {}

    @property
    def images(self) -> dict[str, Any]:
        """The image processor's config."""
        return self.json(IMAGE_CONFIG) or self.json(PROCESSOR_CONFIG).get("image_processor", {})

    @property
    def template(self) -> str | None:
        """The chat template (Jinja), from wherever transformers of any version put it."""
        if TEMPLATE in self.files:
            return self.files[TEMPLATE].decode()
        for name in ("chat_template.json", TOKENIZER_CONFIG, PROCESSOR_CONFIG):
            if found := self.json(name).get("chat_template"):
                return str(found)
        return None

    def token(self, number: int) -> str:
        """The text of an added token. Raises YopoError if the tokenizer has none with this id."""
        for entry in self.json(TOKENIZER).get("added_tokens", []):
            if entry["id"] == number:
                return str(entry["content"])
        raise YopoError(f"The tokenizer has no token {number}, the placeholder of the model's pictures.", "Is the folder complete?")

    def write(self, folder: Path) -> None:
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Read them. Raises YopoError without a tokenizer.json."""
    if not checkpoint.foreign:
        return Preprocessing(_read(checkpoint.path))
    with TemporaryDirectory() as folder:
        checkpoint.write_processor(Path(folder))
        return Preprocessing(_read(Path(folder)))


def _read(folder: Path) -> dict[str, bytes]:
    if not (folder / TOKENIZER).is_file():
        raise YopoError(
            f"{folder} has no {TOKENIZER}, the form of a tokenizer that other runtimes read.",
            "Save it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    licences = [file.name for pattern in LICENCE_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
    return {name: (folder / name).read_bytes() for name in (*NAMES, *licences) if (folder / name).is_file() and name != CONFIG}


def write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
