"""LLaVA's protocol: the words before the turn, and pictures in the middle of a square."""

import pytest
from PIL import Image

from converters.data.pictures import Picture, picture_base64, picture_of
from converters.errors import YopoError
from converters.evaluation.protocols import encoder, padded, vicuna
from converters.evaluation.published import published
from converters.evaluation.task import Question
from converters.loading import demo_folder, load_processor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def test_the_system_prompt_ends_with_a_space() -> None:
    processor = load_processor(demo_folder())
    assert vicuna(processor, "Is it red?") == SYSTEM + "USER: <image>\nIs it red? ASSISTANT:"
    assert vicuna(processor, "Is it red?", images=0) == SYSTEM + "USER: Is it red? ASSISTANT:"


def test_another_model_is_refused() -> None:
    processor = load_processor(demo_folder())
    processor.chat_template = "{% for part in messages[0].content %}{{ part.text or '<image>' }}{% endfor %}<|im_start|>assistant"
    with pytest.raises(YopoError, match=r"for LLaVA-1\.5"):
        vicuna(processor, "Is it red?")
    with pytest.raises(YopoError, match="no protocol 'lava'"):
        encoder("lava")


@pytest.mark.parametrize(("size", "first", "last"), [((7, 4), (0, 1), (6, 4)), ((4, 7), (1, 0), (4, 6)), ((5, 5), (0, 0), (4, 4))])
def test_padding(size: tuple[int, int], first: tuple[int, int], last: tuple[int, int]) -> None:
    """A red picture of 7 x 4 lies on rows 1 to 4 of 7; around it is CLIP's mean, cut to whole numbers."""
    square = padded(Image.new("RGB", size, (255, 0, 0)), MEAN)
    side = max(size)
    assert square.size == (side, side)
    for x in range(side):
        for y in range(side):
            inside = first[0] <= x <= last[0] and first[1] <= y <= last[1]
            assert square.getpixel((x, y)) == ((255, 0, 0) if inside else (122, 116, 104))


def test_a_wide_picture_is_seen_whole() -> None:
    """The checkpoint's own processor crops the middle of it: a red edge is gone there, and stays here."""
    image = Image.new("RGB", (192, 96), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 40, 96))
    question = Question("1", "Is it red?", (Picture("made", lambda: image),), ("yes",), "1", "1")
    processor = load_processor(demo_folder())
    own, llava = (encoder(name)(processor, [question])["pixel_values"][0] for name in ("checkpoint", "llava"))
    assert own.shape == llava.shape == (3, 96, 96)
    red = (1 - MEAN[0]) / 0.26862954
    assert float(own[0].max()) < 0 < red - 0.1 < float(llava[0].max())


def test_pictures_that_cannot_be_read() -> None:
    with pytest.raises(YopoError, match="The picture cannot be read: cannot identify image file"):
        picture_of("The picture", lambda: b"no").open()
    with pytest.raises(YopoError, match="The picture is not base64"):
        picture_base64("!!", "The picture").open()


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b"])
def test_published_figures(name: str) -> None:
    assert published("pope", name) == 85.9
    assert published("mme", name) == 1510.7
    assert published("vqav2", name) is None  # test-dev's
    assert published("pope", "someone/my-llava-1.5-7b-tuned") is None
