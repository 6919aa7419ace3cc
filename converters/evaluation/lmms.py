"""Converted models in lmms-eval (`pip install 'yopo[lmms]'`), whose own model classes cannot load them:

    lmms-eval --model yopo --model_args pretrained=OUT,record=answers.jsonl --tasks pope --batch_size 8
    lmms-eval --model yopo --model_args pretrained=OUT,record=answers.jsonl,side=dense --tasks pope --batch_size 8

Both sides answer in the first pass; with the same `record` the second command asks nothing. Loaded by lmms-eval's entry point.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from ..data.footage import video
from ..data.prompts import check_videos, encode
from ..model import load
from .record import Key, Record
from .sides import model_group, subject_of

LONGEST = 1024  # new tokens where a task sets no limit, as lmms-eval's own classes have it


def manifest() -> ModelManifest:
    """What the entry point `lmms_eval.models` gives."""
    return ModelManifest(model_id="yopo", chat_class_path=f"{__name__}.Yopo")


class Yopo(lmms):  # type: ignore[misc]
    """A model that `yopo.load` knows. `side`: whose answers are scored, `pruned` (default; `dense` of a dense model) or `dense`.

    `record`: a file for the answers of both, by task and document; what is in it is not asked again.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int = 1,
        dtype: str = "auto",
        side: str = "",
        record: str = "",
        **_: Any,
    ) -> None:
        super().__init__()
        self.batch_size_per_gpu = int(batch_size)
        self.subject = subject_of(load(pretrained, device=device, dtype=dtype))
        self.group = model_group(self.subject)
        self.side = side or self.group.names[-1]
        if self.side not in self.group.names:
            raise ValueError(f"side={side}: this model has {', '.join(self.group.names)}")
        settings = {"model": pretrained, "dtype": self.subject.loaded.dtype, "batch_size": int(batch_size)}
        self.record = Record.open(Path(record) if record else None, settings)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The chosen side's answers, in order."""
        keys = [_key(request) for request in requests]
        for start in range(0, len(requests), self.batch_size_per_gpu):
            part = slice(start, start + self.batch_size_per_gpu)
            if self.record.lacks(keys[part], self.group.names):
                self.record.add(dict(zip(keys[part], self._answers(requests[part]), strict=True)))
        self.record.finish({"task": task, "id": name, "answers": said} for (task, name), said in self.record.answers.items())
        return [
            GenerationResult(text=_until(self.record.answers[key][self.side], _settings(request)))
            for key, request in zip(keys, requests, strict=True)
        ]

    def _answers(self, requests: Sequence[Any]) -> Iterator[dict[str, str]]:
        """What every side says to each of a batch."""
        texts, images, videos = [], [], []
        processor = self.subject.loaded.processor
        for request in requests:
            _, messages_of, _, document, task, split = request.args
            messages = ChatMessages(messages=messages_of(self.task_dict[task][split][document]))
            pictures, films, _ = messages.extract_media()
            check_videos(processor, len(films), f"{task}, document {document}")
            texts.append(processor.apply_chat_template(messages.to_hf_messages(), add_generation_prompt=True))
            images += [image.convert("RGB") for image in pictures]
            videos += [video(film).open() for film in films]
        inputs = encode(processor, texts, images, videos)
        most = max(int(_settings(request).get("max_new_tokens", LONGEST)) for request in requests)
        said = {side.name: side.answer(inputs, most) for side in self.group.open()}
        return ({name: answers[place] for name, answers in said.items()} for place in range(len(requests)))

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError("yopo's model generates answers; it is not asked for likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        raise NotImplementedError("yopo's model answers one question at a time")


def _key(request: Any) -> Key:
    _, _, _, document, task, split = request.args
    return task, f"{split} {document}"


def _settings(request: Any) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = request.args[2]
    return settings


def _until(text: str, settings: Mapping[str, Any]) -> str:
    """The answer before the first of the task's stop words."""
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
