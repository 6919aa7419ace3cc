"""A picture that is opened when it is asked for, wherever it is: in a file, in a table, in a line of text."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import YopoError
from .decoding import decoded

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """`open()` gives the picture in RGB, decoded, or raises YopoError; `place` says where it is, for messages.

    `read()` gives its file's bytes, where there is one.
    """

    place: str
    open: "Callable[[], Image]"
    read: Callable[[], bytes] | None = None


def picture_of(place: str, read: Callable[[], bytes]) -> Picture:
    """A picture whose file's bytes `read` gives."""
    return Picture(place, lambda: decoded(BytesIO(read()), place), read)


def picture_file(path: Path) -> Picture:
    return picture_of(f"The image {path}", path.read_bytes)


def picture_base64(text: str, place: str) -> Picture:
    """A picture written in base64, as in MMBench's TSV; a `data:image/...;base64,` prefix is allowed."""

    return picture_of(place, lambda: bytes_of_base64(text, place))


def bytes_of_base64(text: str, place: str) -> bytes:
    """A file that is written in a line of text. Raises YopoError."""
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except binascii.Error:
        raise YopoError(f"{place} is not base64.", "A picture in a line of text is the base64 of its file.") from None
