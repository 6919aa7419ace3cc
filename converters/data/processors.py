"""Processors of families that know videos, where torchvision, which transformers' video processors need, is not installed."""

from pathlib import Path
from typing import Any

from ..json_files import read_object
from .videos import Frames, NoFrames, PairedFrames, WholeFrames

NOT_ARGUMENTS = ("processor_class", "image_processor", "video_processor", "tokenizer", "auto_map")


def without_torchvision(path: Path) -> Any:
    """The checkpoint's processor, pictures and frames of videos through PIL. Raises ValueError if its files name no processor."""
    import transformers

    words, _ = transformers.ProcessorMixin.get_processor_dict(path, local_files_only=True)
    base: Any = getattr(transformers, _class_name(path, words))
    arguments = {name: value for name, value in words.items() if name not in NOT_ARGUMENTS}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    arguments.setdefault("chat_template", tokenizer.chat_template)
    pictures = transformers.AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True)
    return _accepting_frames(base)(image_processor=pictures, tokenizer=tokenizer, video_processor=_videos(path, pictures), **arguments)


def _videos(path: Path, pictures: Any) -> Frames:
    """Frames as pictures, by the settings that the files have for videos, else for pictures."""
    from transformers.video_processing_utils import BaseVideoProcessor

    settled = {"temporal_patch_size": PairedFrames, "image_grid_pinpoints": WholeFrames, "max_image_size": NoFrames}
    kind = next((kind for setting, kind in settled.items() if hasattr(pictures, setting)), Frames)
    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(path, local_files_only=True)
    except OSError:
        return kind(pictures)
    return kind(type(pictures)(**{name: value for name, value in settings.items() if not name.endswith("_type")}))


def _class_name(path: Path, words: dict[str, Any]) -> str:
    """Older checkpoints have it in preprocessor_config.json."""
    file = path / "preprocessor_config.json"
    older = read_object(file, "Fetch it again.") if file.exists() else {}
    name = words.get("processor_class") or older.get("processor_class")
    if name is None:
        raise ValueError("neither processor_config.json nor preprocessor_config.json names a processor_class")
    return str(name)


def _accepting_frames(base: Any) -> Any:
    """The same class, whose video processor need not be one of transformers'."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if isinstance(argument, Frames) else base.check_argument_for_proper_class(self, name, argument)

    return type(base.__name__, (base,), {"check_argument_for_proper_class": check})
