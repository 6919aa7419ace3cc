"""Processors of families that know videos, where torchvision, which videos need, is not installed: pictures and text alone."""

import json
from pathlib import Path
from typing import Any

NOT_ARGUMENTS = ("processor_class", "image_processor", "video_processor", "tokenizer", "auto_map")


def without_video(path: Path) -> Any:
    """The checkpoint's processor with transformers' PIL image processor. Raises ValueError if its files name no processor."""
    import transformers

    words, _ = transformers.ProcessorMixin.get_processor_dict(path, local_files_only=True)
    base: Any = getattr(transformers, _class_name(path, words))
    arguments = {name: value for name, value in words.items() if name not in NOT_ARGUMENTS}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    arguments.setdefault("chat_template", tokenizer.chat_template)
    pictures = transformers.AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True)
    return _accepting_no_video(base)(image_processor=pictures, tokenizer=tokenizer, **arguments)


def _class_name(path: Path, words: dict[str, Any]) -> str:
    """Older checkpoints have it in preprocessor_config.json."""
    file = path / "preprocessor_config.json"
    older = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    name = words.get("processor_class") or older.get("processor_class")
    if name is None:
        raise ValueError("neither processor_config.json nor preprocessor_config.json names a processor_class")
    return str(name)


def _accepting_no_video(base: Any) -> Any:
    """The same class, whose video processor may be missing."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" and argument is None else base.check_argument_for_proper_class(self, name, argument)

    return type(base.__name__, (base,), {"check_argument_for_proper_class": check})
