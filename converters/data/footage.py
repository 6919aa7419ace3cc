"""Videos that are opened when they are asked for: a file, a picture that moves, a folder of frames, or frames one by one.

Of a file or a folder FRAMES frames are taken, evenly spread, whatever its length (of fewer, some twice), so that the videos of a batch
are of one length, which some models' processors ask for. Frames that are listed are taken as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import YopoError
from .decoding import in_rgb, open_picture, reasons_told

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 8
GIVEN_PER_SECOND = 2.0
"""Of frames that come without times, as Qwen's own code takes them."""
READERS = "pip install 'yopo[video]', or give frames: a list of pictures."


@dataclass(frozen=True)
class Footage:
    """Frames in RGB, decoded: the `places` of `total` in a video of `fps` frames a second."""

    frames: tuple[Any, ...]
    places: tuple[int, ...]
    total: int
    fps: float

    @property
    def metadata(self) -> dict[str, Any]:
        """The same in transformers' words."""
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "duration": self.total / self.fps,
            "frames_indices": list(self.places),
        }


@dataclass(frozen=True)
class Video:
    """`open()` gives its frames, or raises YopoError; `place` says where it is, for messages; `files` are what it is read from."""

    place: str
    open: Callable[[], Footage]
    files: tuple[Path, ...] = ()


def video(source: "str | Path | Sequence[Any]", place: str = "The video") -> Video:
    """A video by its file or its folder of frames; or of frames, each a file or a PIL image. Raises YopoError where there is none."""
    if not isinstance(source, str | Path):
        return _listed(tuple(source), place)
    path = Path(source)
    if path.is_dir():
        files = tuple(sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")))
        if not files:
            raise YopoError(f"{place} {path} is a folder without frames.", "Give a video, or pictures that are its frames in order.")
        return Video(f"{place} {path}", lambda: _of_folder(files, place), files)
    if not path.is_file():
        raise YopoError(f"{place} {path} does not exist.", "Paths are relative to the file that names them.")
    return Video(f"{place} {path}", lambda: _decoded(path, f"{place} {path}"), (path,))


def video_of(place: str, read: Callable[[], bytes]) -> Video:
    """A video whose file's bytes `read` gives."""
    return Video(place, lambda: _decoded(BytesIO(read()), place))


def spread(total: int) -> tuple[int, ...]:
    """FRAMES places of `total`, each in the middle of as long a stretch."""
    return tuple((2 * number + 1) * total // (2 * FRAMES) for number in range(FRAMES))


def _listed(frames: tuple[Any, ...], place: str) -> Video:
    if not frames:
        raise YopoError(f"{place} has no frames.", "Give a video, or pictures that are its frames in order.")
    files = tuple(Path(frame) for frame in frames if isinstance(frame, str | Path))
    if missing := next((file for file in files if not file.is_file()), None):
        raise YopoError(f"{place} has no frame {missing}.", "Paths are relative to the file that names them.")

    def opened() -> Footage:
        return Footage(tuple(_frame(frame, place) for frame in frames), tuple(range(len(frames))), len(frames), GIVEN_PER_SECOND)

    return Video(place, opened, files)


def _frame(frame: Any, place: str) -> "Image":
    return open_picture(Path(frame), f"{place}: the") if isinstance(frame, str | Path) else in_rgb(frame, f"{place}: the")


def _of_folder(files: Sequence[Path], place: str) -> Footage:
    places = spread(len(files))
    return Footage(tuple(open_picture(files[number], f"{place}: the") for number in places), places, len(files), GIVEN_PER_SECOND)


def _decoded(source: Path | BytesIO, name: str) -> Footage:
    from PIL import Image, UnidentifiedImageError

    with reasons_told(name):
        try:
            with Image.open(source) as image:
                return _moving(image, name)
        except UnidentifiedImageError:
            if isinstance(source, BytesIO):
                source.seek(0)
        return _film(source, name)


def _moving(image: Any, name: str) -> Footage:
    """GIF, WebP and the like, whose frames have a duration in milliseconds each."""
    total = getattr(image, "n_frames", 1)
    places, frames = spread(total), []
    for number in places:
        image.seek(number)
        frames.append(in_rgb(image, name))
    return Footage(tuple(frames), places, total, 1000 / (image.info.get("duration") or 1000 / GIVEN_PER_SECOND))


def _film(source: Path | BytesIO, name: str) -> Footage:
    """MP4, WebM and what else FFmpeg reads."""
    try:
        import av
    except ImportError:
        raise YopoError(f"{name} cannot be read: videos are read by PyAV, which is not installed.", READERS) from None
    with av.open(str(source) if isinstance(source, Path) else source, "r") as film:
        if not film.streams.video:
            raise ValueError("there are no pictures in it")
        total = sum(bool(packet.size) for packet in film.demux(video=0))
        film.seek(0)
        places = spread(total)
        frames = list(_chosen(film.decode(video=0), places))
        if not frames:
            raise ValueError("there are no pictures in it")
        frames += frames[-1:] * (len(places) - len(frames))  # a last one that is cut off
        rate = film.streams.video[0].average_rate
    upright = tuple(in_rgb(frame.to_image().rotate(frame.rotation, expand=True), name) for frame in frames)
    return Footage(upright, places, total, float(rate) if rate else GIVEN_PER_SECOND)


def _chosen(frames: Iterator[Any], places: Sequence[int]) -> Iterator[Any]:
    """The frames at `places`, in order, some more than once."""
    for number, frame in enumerate(frames):
        yield from (frame for place in places if place == number)
        if number == places[-1]:
            return
