"""From pictures and questions to a model's inputs, through its own chat template and processor."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from ..errors import YopoError
from ..time_limit import time_limit
from .sample import Sample

TEMPLATE_SECONDS = 10.0
OTHER_TEMPLATE = "Put another chat_template.jinja beside its processor_config.json."
PLACEHOLDERS = ("image_token", "video_token")


def prompt(processor: Any, question: str, images: int, answer: str | None = None, place: str = "The question") -> str:
    """The text of one turn in the model's chat template: pictures first, then the question, and the answer if one is given.

    Question and answer are text and nothing else. Raises YopoError where a part of them is a token that the model gives a meaning of
    its own, such as the end of a turn, and for a template that cannot be used.
    """
    _check_text(processor, question, f"{place}: the question")
    if answer is not None:
        _check_text(processor, answer, f"{place}: the answer")
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = _rendered(processor, turns, answer is None)
    token = getattr(processor, "image_token", None)
    if token and text.count(token) != images:
        raise YopoError(f"The model's chat template puts {text.count(token)} places for {images} pictures.", OTHER_TEMPLATE)
    if question.strip() not in text or (answer or "").strip() not in text:
        raise YopoError("The model's chat template leaves out the question or the answer, or changes it.", OTHER_TEMPLATE)
    return text


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


def encode(processor: Any, texts: Sequence[str], images: Sequence[Any]) -> Any:
    """The model's inputs for these texts, padded on the left, and all their pictures in order."""
    options = {"images": _by_text(processor, texts, images)} if images else {}
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
    texts = [prompt(processor, one.question, len(one.images), one.answer if answers else None, one.place) for one in samples]
    return encode(processor, texts, [picture for one in samples for picture in one.pictures()])
