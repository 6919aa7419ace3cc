"""One question about pictures and videos."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import YopoError

if TYPE_CHECKING:  # the command line answers `--help` without it
    from PIL.Image import Image

    from .footage import Footage, Video
    from .pictures import Picture

    Visual = Path | str | Image | Picture | Video

FORMAT_HINT = (
    'Each line is one object: {"image": "picture.jpg", "question": "...", "answer": "..."}; the answer, "kind" and "id" are optional. '
    "LLaVA conversations, chats and parquet are read too."
)


@dataclass(frozen=True)
class Sample:
    """One question about one picture: a file, a PIL image, a `Picture` or a `Video`; a tuple of several, () for text alone.

    `place`: for messages.
    """

    image: "Visual | tuple[Visual, ...]"
    question: str
    answer: str | None = None
    kind: str | None = None
    place: str = ""

    def picture(self) -> "Image":
        """The only picture in RGB, decoded. Raises YopoError where it cannot be, and where there is none, or several."""
        if len(self.images) != 1:
            raise YopoError(f"{self.place or 'A sample'} has {len(self.images)} pictures.", "Here one is needed: leave it out.")
        return self.pictures()[0]

    @property
    def visuals(self) -> "tuple[Visual, ...]":
        """What was given as `image`, as a tuple."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def images(self) -> "tuple[Path | str | Image | Picture, ...]":
        """The pictures among it."""
        from .footage import Video

        return tuple(one for one in self.visuals if not isinstance(one, Video))

    @property
    def videos(self) -> "tuple[Video, ...]":
        """The videos among it."""
        from .footage import Video

        return tuple(one for one in self.visuals if isinstance(one, Video))

    def pictures(self) -> "list[Image]":
        """All pictures in RGB, decoded. Raises YopoError where one cannot be."""
        return [open_image(image, f"{self.place}: the" if self.place else "The") for image in self.images]

    def footage(self) -> "list[Footage]":
        """All videos, decoded. Raises YopoError where one cannot be."""
        return [video.open() for video in self.videos]


def open_image(image: "Path | str | Image | Picture", which: str = "The") -> "Image":
    """A picture in RGB, decoded. Raises YopoError if it is not there or cannot be read."""
    from .decoding import in_rgb, open_picture
    from .pictures import Picture

    if isinstance(image, Picture):
        return image.open()
    if isinstance(image, str | Path):
        return open_picture(Path(image), which)
    return in_rgb(image, which)
