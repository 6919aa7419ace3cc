"""One way to open a picture: upright, in RGB, transparent parts white; what the models' processors could not take is refused.

| mode of the file | becomes |
|---|---|
| grey, palette, RGB, CMYK, YCbCr, LAB, HSV | RGB, by Pillow |
| grey of 16 bits | the upper 8 bits |
| whole numbers of 32 bits | as 16 bits, if all are within 0..65535; else refused |
| floating point | 0..1 becomes 0..255; other values are refused |
| with alpha, or a transparent colour | laid over white |

Of several frames the first one is taken; EXIF's orientation is obeyed.
"""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import YopoError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485  # Pillow's own bound on what it opens without a warning
MAX_ASPECT = 200  # Qwen2-VL's processor refuses longer pictures; others would enlarge them without bound
HINT = "Is it whole, and in a format that Pillow reads?"
WHITE = (255, 255, 255, 255)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def open_picture(file: Path, which: str = "The") -> "Image":
    """The picture in a file as RGB, decoded. Raises YopoError, which begins with `which`, where it cannot be."""
    _check_regular(file, which)
    return decoded(file, f"{which} image {file}")


def decoded(source: "Path | BinaryIO", name: str) -> "Image":
    """The picture in a file or stream as RGB. Raises YopoError, which begins with `name`, where it cannot be."""
    from PIL import Image, ImageOps

    with reasons_told(name), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source) as image:
            _check_size(image.size)
            return _rgb(ImageOps.exif_transpose(image))


def in_rgb(image: "Image", which: str = "The") -> "Image":
    """The same of a picture in memory. Raises YopoError."""
    with reasons_told(f"{which} image"):
        _check_size(image.size)
        return _rgb(image)


@contextmanager
def reasons_told(name: str) -> Iterator[None]:
    """Within, what goes wrong is a YopoError that begins with `name`."""
    try:
        yield
    except (MemoryError, YopoError):
        raise
    except Exception as error:  # Pillow's decoders raise what they like on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise YopoError(f"{name} cannot be read: {reason.rstrip('.')}.", HINT) from None


def _check_regular(file: Path, which: str) -> None:
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise YopoError(f"{which} image {file} cannot be read: {getattr(error, 'strerror', None) or error}.", "Check the path.") from None
    if not regular:
        raise YopoError(f"{which} image {file} is not a regular file.", "Check the path.")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(size) > MAX_ASPECT * min(size):
        raise ValueError(f"it has {width} x {height} pixels, and one side is more than {MAX_ASPECT} times the other")


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode in SIXTEEN_BITS or image.mode in ("I", "F"):
        if "transparency" in image.info:
            raise ValueError(f"a transparent colour in mode {image.mode}")
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def _eight_bits(image: "Image") -> "Image":
    """Grey of more than 8 bits; Pillow's own conversion cuts values off at 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    high = 1.0 if image.mode == "F" else 65535
    if not bool(((values >= 0) & (values <= high)).all()):  # so that NaN fails
        raise ValueError(f"values of mode {image.mode} that are not within 0..{high:g}")
    grey = np.round(values * 255.0) if image.mode == "F" else values.astype(np.uint16) >> 8
    return Image.fromarray(grey.astype(np.uint8))
