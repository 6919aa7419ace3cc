"""Videos: which frames are taken, and what is said of files that are none."""

from pathlib import Path

import pytest
from PIL import Image

from converters.data.footage import Footage, spread, video
from converters.errors import YopoError


def shades(footage: Footage) -> list[int]:
    return [frame.getpixel((4, 4))[0] for frame in footage.frames]


def grey(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 16), (shade,) * 3)


def test_frames_lie_in_the_middle_of_equal_stretches() -> None:
    assert spread(8) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert spread(80) == (5, 15, 25, 35, 45, 55, 65, 75)
    assert spread(2) == (0, 0, 0, 0, 1, 1, 1, 1)


def test_a_picture_that_moves(tmp_path: Path) -> None:
    frames = [grey(10 * number) for number in range(16)]
    frames[0].save(tmp_path / "v.webp", save_all=True, append_images=frames[1:], duration=250, lossless=True)
    footage = video(tmp_path / "v.webp").open()
    assert shades(footage) == [10, 30, 50, 70, 90, 110, 130, 150]
    assert footage.metadata == {"total_num_frames": 16, "fps": 4.0, "duration": 4.0, "frames_indices": [1, 3, 5, 7, 9, 11, 13, 15]}


def test_frames_in_a_folder_and_in_a_list(tmp_path: Path) -> None:
    for number in range(24):
        grey(10 * number).save(tmp_path / f"{number:03d}.png")
    assert shades(video(tmp_path).open()) == [10, 40, 70, 100, 130, 160, 190, 220]
    listed = video([tmp_path / "003.png", grey(7)]).open()
    assert (shades(listed), listed.metadata["fps"]) == ([30, 7], 2.0)


def test_film(tmp_path: Path) -> None:
    """H.264's neighbour MPEG-4, which every build of FFmpeg writes."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(16):
            film.mux(stream.encode(av.VideoFrame.from_image(grey(10 * number + 20))))
        film.mux(stream.encode())
    footage = video(tmp_path / "v.mp4").open()
    assert shades(footage) == pytest.approx([30, 50, 70, 90, 110, 130, 150, 170], abs=4)
    assert (footage.total, footage.fps, footage.frames[0].size) == (16, 5.0, (32, 16))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:200])
    with pytest.raises(YopoError, match=r"The video .*cut.mp4 cannot be read"):
        video(tmp_path / "cut.mp4").open()


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(YopoError, match="is a folder without frames"):
        video(tmp_path / "empty")
    with pytest.raises(YopoError, match=r"line 3: the video .*nowhere.mp4 does not exist"):
        video(tmp_path / "nowhere.mp4", "line 3: the video")
    with pytest.raises(YopoError, match=r"has no frame .*nowhere.png"):
        video([tmp_path / "nowhere.png"])
    with pytest.raises(YopoError, match=r"The video .*text.mp4 cannot be read") as told:
        video(tmp_path / "text.mp4").open()
    assert told.value.hint
