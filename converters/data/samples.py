"""Questions about images: one JSON object a line, read for calibration and for evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import YopoError

REQUIRED = ("image", "question")
OPTIONAL = ("answer", "kind", "id")
FORMAT_HINT = (
    'Each line is one object: {"image": "picture.jpg", "question": "...", "answer": "..."}; the answer, "kind" and "id" are optional.'
)


@dataclass(frozen=True)
class Sample:
    """One question about one image. `place` is where it came from, for messages."""

    image: Path
    question: str
    answer: str | None = None
    kind: str | None = None
    place: str = ""


def read_samples(path: Path) -> list[Sample]:
    """All samples of a JSONL file; image paths are relative to the file.

    Raises YopoError, with the line's number, for an empty or malformed line, a missing or unknown key, a value that is not
    text, and an image that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise YopoError(f"{path} cannot be read: {error}.", "Pass a JSONL file in UTF-8.") from None
    if not lines:
        raise YopoError(f"{path} is empty.", FORMAT_HINT)
    return [_sample(line, path, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _sample(line: str, path: Path, place: str) -> Sample:
    if not line.strip():
        raise YopoError(f"{place} is empty.", FORMAT_HINT)
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise YopoError(f"{place} is not JSON: {error.msg} at column {error.colno}.", FORMAT_HINT) from None
    _check(data, place)
    image = path.parent / data["image"]
    if not image.is_file():
        raise YopoError(f"{place}: there is no image {image}.", f"Image paths are relative to {path.parent}.")
    return Sample(image, data["question"], data.get("answer"), data.get("kind"), place)


def _check(data: Any, place: str) -> None:
    if not isinstance(data, dict):
        raise YopoError(f"{place} is not a JSON object.", FORMAT_HINT)
    if missing := [key for key in REQUIRED if key not in data]:
        raise YopoError(f"{place} lacks {' and '.join(missing)}.", FORMAT_HINT)
    if unknown := sorted(set(data) - {*REQUIRED, *OPTIONAL}):
        raise YopoError(f"{place} has an unknown key: {', '.join(unknown)}.", FORMAT_HINT)
    for key in (*REQUIRED, "answer", "kind"):
        if key in data and not isinstance(data[key], str):
            raise YopoError(f"{place}: {key} is {json.dumps(data[key])}, not text.", FORMAT_HINT)


def load_image(sample: Sample) -> Image.Image:
    """The sample's image in RGB, decoded. Raises YopoError where it cannot be."""
    try:
        with Image.open(sample.image) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        place = f"{sample.place}: the" if sample.place else "The"
        raise YopoError(
            f"{place} image {sample.image} cannot be read: {error}.", "Is it whole, and in a format that Pillow reads?"
        ) from None


def prompt_inputs(processor: Any, image: Any, question: str, answer: str | None = None) -> Any:
    """Processor outputs (a batch of one) for a question about an image, and the answer as the assistant's reply where given."""
    if processor.chat_template is None:
        text = f"USER: <image>\n{question} ASSISTANT:" + (f" {answer}" if answer is not None else "")
        return processor(images=image, text=text, return_tensors="pt")
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(
        messages, add_generation_prompt=answer is None, tokenize=True, return_dict=True, return_tensors="pt"
    )
