"""From pictures and questions to a model's inputs, through its own chat template and processor."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from ..errors import YopoError
from ..time_limit import time_limit
from .footage import Footage
from .sample import Sample
from .videos import NoFrames

TEMPLATE_SECONDS = 10.0
OTHER_TEMPLATE = "Put another chat_template.jinja beside its processor_config.json."
PLACEHOLDERS = ("image_token", "video_token")


def prompt(
    processor: Any, question: str, images: int, answer: str | None = None, place: str = "The question", videos: int = 0
) -> str:  # fmt: skip
    """The text of one turn in the model's chat template: pictures first, then videos, the question, and the answer if one is given.

    Question and answer are text and nothing else. Raises YopoError where a part of them is a token that the model gives a meaning of
    its own, such as the end of a turn, for a template that cannot be used, and for videos where the model takes none.
    """
    check_videos(processor, videos, place)
    _check_text(processor, question, f"{place}: the question")
    if answer is not None:
        _check_text(processor, answer, f"{place}: the answer")
    seen = [*({"type": "image"} for _ in range(images)), *({"type": "video"} for _ in range(videos))]
    content = [*seen, {"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = _rendered(processor, turns, answer is None)
    for name, what, count in (("image_token", "pictures", images), ("video_token", "videos", videos)):
        token = getattr(processor, name, None)
        if token and text.count(token) != count:
            raise YopoError(f"The model's chat template puts {text.count(token)} places for {count} {what}.", OTHER_TEMPLATE)
    if question.strip() not in text or (answer or "").strip() not in text:
        raise YopoError("The model's chat template leaves out the question or the answer, or changes it.", OTHER_TEMPLATE)
    return text


def check_videos(processor: Any, videos: int, place: str) -> None:
    """Raise YopoError where there are videos and the model takes none."""
    films = getattr(processor, "video_processor", None)
    if videos and (not getattr(processor, "video_token", None) or isinstance(films, NoFrames)):
        raise YopoError(f"{place} has a video, and this model takes none.", "Give its frames as pictures: a list in image.")


def _check_text(processor: Any, text: str, which: str) -> None:
    """Raise YopoError unless the text is read as text."""
    tokenizer = processor.tokenizer
    placeholders = [token for name in PLACEHOLDERS if (token := getattr(processor, name, None)) and token in text]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    special -= {tokenizer.unk_token_id}
    read = tokenizer.convert_ids_to_tokens([number for number in _ids(tokenizer, text, which) if number in special])
    if foreign := [*placeholders, *read]:
        raise YopoError(
            f"{which} holds {foreign[0]}, which is no text to the model: it stands for a picture, or the end of a turn.",
            "Leave it out, or write it another way.",
        )


def _ids(tokenizer: Any, text: str, which: str) -> list[int]:
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except (TypeError, UnicodeError):  # half of a character, as JSON can write it
        raise YopoError(f"{which} is not Unicode text.", "Write it in UTF-8.") from None
    return ids


def _rendered(processor: Any, turns: list[dict[str, Any]], ask: bool) -> str:
    if getattr(processor, "chat_template", None) is None:
        raise YopoError("The model has no chat template.", "Put a chat_template.jinja beside its processor_config.json.")
    try:
        with time_limit(TEMPLATE_SECONDS):
            return str(processor.apply_chat_template(turns, add_generation_prompt=ask))
    except MemoryError:
        raise
    except Exception as error:  # a template is a program: it can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise YopoError(f"The model's chat template cannot be used: {reason:.300}", OTHER_TEMPLATE) from None


def encode(processor: Any, texts: Sequence[str], images: Sequence[Any], videos: Sequence[Footage] = ()) -> Any:
    """The model's inputs for these texts, padded on the left, and all their pictures and videos in order.

    Raises YopoError for videos of several lengths where the processor wants one.
    """
    options: dict[str, Any] = {"images": _by_text(processor, texts, images)} if images else {}
    if videos:
        lengths = {len(one.frames) for one in videos}
        if len(lengths) > 1 and not hasattr(processor.image_processor, "temporal_patch_size"):
            said = ", ".join(map(str, sorted(lengths)))
            raise YopoError(f"This model's processor takes videos of one length, not of {said} frames.", "Give each as many frames.")
        options |= {"videos": [list(one.frames) for one in videos], "video_metadata": [one.metadata for one in videos]}
        options["do_sample_frames"] = False
    return processor(text=list(texts), return_tensors="pt", padding=True, **options)


def _by_text(processor: Any, texts: Sequence[str], images: Sequence[Any]) -> list[Any]:
    """The pictures of each text by itself: to some processors it matters which stand together. All in order where texts do not tell."""
    token = getattr(processor, "image_token", None)
    counts = [text.count(token) if token else 0 for text in texts]
    if sum(counts) != len(images):
        return list(images)
    following = iter(images)
    return [list(islice(following, count)) for count in counts]


def encode_samples(processor: Any, samples: Iterable[Sample], *, answers: bool = False) -> Any:
    """Inputs of a batch; with `answers`, each text ends with its answer where there is one."""
    samples = list(samples)
    texts = [
        prompt(processor, one.question, len(one.images), one.answer if answers else None, one.place, len(one.videos)) for one in samples
    ]
    pictures, videos = ([*chain.from_iterable(parts)] for parts in zip(*((one.pictures(), one.footage()) for one in samples), strict=True))
    return encode(processor, texts, pictures, videos)
