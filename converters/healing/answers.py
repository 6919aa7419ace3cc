"""The dense model's answers, made once and kept: one file a sample, with all that training on it needs.

What enters the projector is kept, not the picture: the vision tower is never trained, and runs once a sample.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint.private import whole_file
from ..errors import YopoError
from ..json_files import read_object
from ..planning.measure.answers import MAX_ANSWER_TOKENS, continued, language_model_pass, placeholders_of

FACTS = "facts.json"


@dataclass(frozen=True)
class TeacherAnswer:
    """One question with the dense model's answer.

    `ids` `[length]` are its tokens, the answer's last; `positions` `[..., length]` what the language model was given with them (None:
    nothing); `seen` `[visual tokens, width]`, or `[visual tokens, patches, width]`, what the projector was given; `dense` `[answer tokens,
    hidden]` the dense model's final (normalised) rows that predict the answer. `ends` `[visual tokens]` tells which visual tokens are the
    learned end of a row, and nothing of the projector's; `deepstack` `[layers, visual tokens, hidden]` is what is added to them after the
    first layers (None: neither).
    """

    ids: Tensor
    positions: Tensor | None
    seen: Tensor
    dense: Tensor
    ends: Tensor | None = None
    deepstack: Tensor | None = None

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}


class Answers(Sequence[TeacherAnswer]):
    """The records of `count` samples in a folder, by number. Several processes may fill one folder."""

    def __init__(self, folder: Path, count: int, facts: Mapping[str, Any]) -> None:
        """Open or make the folder. Raises YopoError where it holds the answers of another model, or to other questions."""
        self.folder, self.samples = folder, count
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FACTS
        if file.exists() and (found := read_object(file, "Remove it, or give another folder.")) != facts:
            differ = ", ".join(sorted(name for name in found.keys() | facts.keys() if found.get(name) != facts.get(name)))
            raise YopoError(f"{folder} holds the answers of another run: {differ} differ.", "Remove it, or give another folder.")
        write_whole(file, json.dumps(facts, indent=2).encode())

    def __len__(self) -> int:
        return self.samples

    def missing(self) -> list[int]:
        """Samples that are not answered yet."""
        return [index for index in range(self.samples) if not self._file(index).exists()]

    def put(self, index: int, record: TeacherAnswer) -> None:
        """Keep a record, whole or not at all."""
        partial = self._file(index).with_suffix(".partial")
        save_file(record.tensors(), partial)
        partial.replace(self._file(index))

    def __getitem__(self, index: Any) -> Any:
        """The record of a sample. Raises YopoError for a file that is damaged."""
        try:
            tensors: dict[str, Any] = {"positions": None} | load_file(self._file(index))
            return TeacherAnswer(**tensors)
        except (OSError, SafetensorError, TypeError) as error:
            raise YopoError(f"The answer {self._file(index)} cannot be read: {error}.", "Remove the file: it is made again.") from None

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:07d}.safetensors"


def records(model: Any, projector: str, batch: Any, max_new_tokens: int = MAX_ANSWER_TOKENS) -> Iterator[TeacherAnswer]:
    """The dense model's answers to a left-padded batch of questions; `projector` is the module's path.

    A converted model must have its plan switched off. Raises YopoError for a question without an image.
    """
    found = continued(model, batch, max_new_tokens)
    seen: list[Tensor] = []
    hook = model.get_submodule(projector).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2)))
    try:
        with torch.inference_mode(), _packing(model, "pixel_values_videos" in found.inputs) as numbers:
            rows, given = language_model_pass(model, found.inputs)
    finally:
        hook.remove()
    counts = found.visual.sum(1).tolist()
    places = by_placeholder(found.inputs["input_ids"][found.visual], placeholders_of(model))
    parts, ends = _by_token(torch.cat(seen), numbers, counts, places)
    deepstack = torch.stack(added).split(counts, 1) if (added := list(given.get("deepstack_visual_embeds") or ())) else None
    for sample, part in enumerate(parts):
        valid = found.mask[sample]
        positions = given.get("position_ids")
        if positions is not None:
            positions = positions.expand(*positions.shape[:-2], len(parts), -1)[..., sample, valid]
        tensors = (found.inputs["input_ids"][sample, valid], positions, part, rows[sample, found.predicts[sample]])
        more = (None if ends is None else ends[sample], None if deepstack is None else deepstack[sample])
        yield TeacherAnswer(*(None if tensor is None else tensor.cpu() for tensor in (*tensors, *more)))  # type: ignore[arg-type]


def _by_token(rows: Tensor, numbers: list[Tensor], counts: list[int], places: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
    """The rows that the projector was given by samples and visual tokens; with `numbers`, which tokens are none of its rows.

    Without, row `places[i]` is visual token `i`'s.
    """
    if not numbers:
        together = len(rows) // sum(counts)  # patches that the projector itself merges
        return (rows if together == 1 else rows.unflatten(0, (-1, together)))[places].split(counts), None
    number = torch.cat(numbers)
    if not number.equal(number.round()):
        raise YopoError("Healing does not know visual tokens that are made of several.", "Heal on pictures that the model does not shrink.")
    return rows[number.long().clamp(min=0)].split(counts), (number < 0).split(counts)


@contextmanager
def _packing(model: Any, videos: bool) -> Iterator[list[Tensor]]:
    """For each call, which of the projector's rows the visual tokens are, -1 for the end of a row; nothing where they are all in order."""
    numbers: list[Tensor] = []
    pack = getattr(model.model, "pack_image_features", None)
    if pack is None:
        yield numbers
        return
    if videos:
        raise YopoError("Healing does not know frames that are made smaller behind the projector.", "Heal on pictures.")

    def numbered(image_features: Sequence[Tensor], *arguments: Any, **keywords: Any) -> Any:
        count = sum(part.shape[0] * part.shape[1] for part in image_features)
        order = torch.arange(count, dtype=torch.float64, device=image_features[0].device)
        split = order.split([part.shape[0] * part.shape[1] for part in image_features])
        parts = [one.view(*part.shape[:2], 1) for one, part in zip(split, image_features, strict=True)]
        packed, _ = pack(parts, *arguments, **keywords | {"image_newline": order.new_full((1,), -1)})
        numbers.append(torch.cat(packed)[:, 0])
        return pack(image_features, *arguments, **keywords)

    model.model.pack_image_features = numbered
    try:
        yield numbers
    finally:
        del model.model.pack_image_features


def by_placeholder(ids: Tensor, placeholders: Sequence[int]) -> Tensor:
    """Where each of the visual tokens `ids` is among rows that come by placeholder: the tower is given pictures first and then videos."""
    kinds = (ids[:, None] == ids.new_tensor(placeholders)).int().argmax(1)
    return kinds.argsort(stable=True).argsort()


def write_whole(file: Path, data: bytes) -> None:
    """Write a small file, whole or not at all, also where several processes write it at once."""
    with whole_file(file) as partial:
        partial.write_bytes(data)
