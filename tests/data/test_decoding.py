"""Every mode of a picture by hand: what a person sees in a viewer is what the model gets."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converters.data.decoding import open_picture
from converters.errors import YopoError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def grey(values: list[list[float]], dtype: Any) -> Image.Image:
    return Image.fromarray(np.array(values, dtype))


def test_the_orientation_in_exif(tmp_path: Path) -> None:
    """6: to be turned by 90 degrees; the red pixel at the top left is then at the top right."""
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_picture(saved(tmp_path, image, exif=exif))
    assert opened.size == (2, 3)
    assert opened.getpixel((1, 0)) == RED


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_that_pillow_converts(mode: str, tmp_path: Path) -> None:
    name = "a.tiff" if mode in ("CMYK", "YCbCr") else "a.png"
    opened = open_picture(saved(tmp_path, Image.new("RGB", (2, 2), WHITE).convert(mode), name))
    assert (opened.mode, opened.getpixel((1, 1))) == ("RGB", WHITE)


@pytest.mark.parametrize(
    ("dtype", "name", "values"),
    [
        (np.uint16, "a.png", [[0, 128 * 257, 65535]]),
        (np.uint16, "a.tiff", [[0, 128 * 257, 65535]]),
        (np.int32, "a.tiff", [[0, 128 * 257, 65535]]),
        (np.float32, "a.tiff", [[0.0, 128 / 255, 1.0]]),
    ],
)
def test_grey_of_more_than_8_bits(dtype: Any, name: str, values: list[list[float]], tmp_path: Path) -> None:
    opened = open_picture(saved(tmp_path, grey(values, dtype), name))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(value,) * 3 for value in (0, 128, 255)]


@pytest.mark.parametrize(("dtype", "value"), [(np.int32, -1), (np.int32, 65536), (np.float32, 2.0), (np.float32, float("nan"))])
def test_numbers_whose_range_is_not_known(dtype: Any, value: float, tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="not within 0"):
        open_picture(saved(tmp_path, grey([[value, 0]], dtype), "a.tiff"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    """An invisible black pixel, a half visible and a visible one."""
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (0, 0, 0, alpha))
    opened = open_picture(saved(tmp_path, image.convert(mode)))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (204,) * 3, (0,) * 3]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), RED if mode == "RGB" else 1)
    opened = open_picture(saved(tmp_path, image, transparency=(0, 0, 0) if mode == "RGB" else 0))
    assert opened.getpixel((0, 0)) == WHITE
    assert opened.getpixel((1, 0)) != WHITE


def png(width: int, height: int) -> bytes:
    """A picture of these sizes whose pixels are not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((1, 100_000), "one side is more than 200 times the other"),
        ((100_000, 1), "one side is more than 200 times the other"),
        ((9_500, 9_500), "cannot be read"),
        ((100_000, 100_000), "cannot be read"),
        ((10, 10), "cannot be read"),
    ],
)
def test_bounds(size: tuple[int, int], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(*size))
    with pytest.raises(YopoError, match=sentence):
        open_picture(tmp_path / "a.png")


def test_what_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").write_bytes(b"")
    for path, sentence in {
        tmp_path / "pipe.png": "is not a regular file",
        tmp_path: "is not a regular file",
        Path("/dev/zero"): "is not a regular file",
        tmp_path / "empty.png": "cannot be read",
        tmp_path / "none.png": "No such file",
        Path("a\0b"): "null byte",
    }.items():
        with pytest.raises(YopoError, match=f"line 1: the image .*{sentence}"):
            open_picture(path, "line 1: the")
