"""From pictures and questions to a model's inputs, through its own chat template and processor."""

from collections.abc import Iterable, Sequence
from typing import Any

from converters.errors import YopoError

from .samples import Sample


def prompt(processor: Any, question: str, images: int, answer: str | None = None, place: str = "The question") -> str:
    """The text of one turn in the model's chat template: pictures first, then the question, and the answer if one is given."""
    token = getattr(processor, "image_token", None)
    if token and token in question:
        raise YopoError(f"{place}: the question holds {token}, the model's place for a picture.", "Leave it out: it is put in for you.")
    if getattr(processor, "chat_template", None) is None:
        raise YopoError("The model has no chat template.", "Put a chat_template.jinja beside its processor_config.json.")
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return str(processor.apply_chat_template(turns, add_generation_prompt=answer is None))


def encode(processor: Any, texts: Sequence[str], images: Sequence[Any]) -> Any:
    """The model's inputs for these texts, padded on the left, and all their pictures in order."""
    options = {"images": list(images)} if images else {}
    return processor(text=list(texts), return_tensors="pt", padding=True, **options)


def encode_samples(processor: Any, samples: Iterable[Sample], *, answers: bool = False) -> Any:
    """Inputs of a batch; with `answers`, each text ends with its answer where there is one."""
    samples = list(samples)
    texts = [prompt(processor, one.question, 1, one.answer if answers else None, one.place) for one in samples]
    return encode(processor, texts, [one.picture() for one in samples])
