"""How a question is put to a model: in the checkpoint's own chat template, or as LLaVA-1.5's published figures were made.

LLaVA's (conv_templates["vicuna_v1"], image_aspect_ratio "pad"): Vicuna's system prompt, pictures padded to a square of the mean colour.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..data.prompts import encode, prompt
from ..errors import YopoError
from ..families.llava_llama import SYSTEM
from .task import Question
from .tasks.wording import CHECKPOINT, LLAVA

Encoder = Callable[[Any, Sequence[Question]], Any]


def _own(processor: Any, questions: Sequence[Question]) -> Any:
    texts = [prompt(processor, one.prompt, len(one.images), place=f"Question {one.id}", videos=len(one.videos)) for one in questions]
    pictures = [image.open() for one in questions for image in one.images]
    return encode(processor, texts, pictures, [video.open() for one in questions for video in one.videos])


def _llava(processor: Any, questions: Sequence[Question]) -> Any:
    texts = [vicuna(processor, one.prompt, len(one.images)) for one in questions]
    mean = processor.image_processor.image_mean
    return encode(processor, texts, [padded(image.open(), mean) for one in questions for image in one.images])


def vicuna(processor: Any, question: str, images: int = 1) -> str:
    """The system prompt, then the turn as the checkpoint's own template writes it. Raises YopoError for a template that is not Vicuna's."""
    plain = prompt(processor, question, images)
    turn = f"USER: {getattr(processor, 'image_token', '') + chr(10) if images else ''}{question} ASSISTANT:"
    if images > 1 or not plain.endswith(turn):
        raise YopoError("The LLaVA protocol is for LLaVA-1.5: this model's turns are others.", "Use --protocol checkpoint.")
    return f"{SYSTEM} {turn}"


def padded(image: Any, mean: Sequence[float]) -> Any:
    """The picture in the middle of a square of the mean colour, as LLaVA's expand2square: the spare pixel comes after it."""
    from PIL import Image

    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), tuple(int(255 * share) for share in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


PROTOCOLS: dict[str, Encoder] = {CHECKPOINT: _own, LLAVA: _llava}


def encoder(name: str) -> Encoder:
    """What makes the model's inputs of a batch of questions. Raises YopoError."""
    if name not in PROTOCOLS:
        raise YopoError(f"There is no protocol {name!r}.", f"Protocols: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
