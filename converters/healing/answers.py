"""The dense model's answers, made once and kept: one file a sample, with all that training on it needs.

What enters the projector is kept, not the picture: the vision tower is never trained, and runs once a sample.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    nothing); `seen` `[visual tokens, width]` what the projector was given; `dense` `[answer tokens, hidden]` the dense model's final
    (normalised) rows that predict the answer.
    """

    ids: Tensor
    positions: Tensor | None
    seen: Tensor
    dense: Tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {"ids": self.ids, "positions": self.positions, "seen": self.seen, "dense": self.dense}
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
            tensors = load_file(self._file(index))
            return TeacherAnswer(tensors["ids"], tensors.get("positions"), tensors["seen"], tensors["dense"])
        except (OSError, SafetensorError, KeyError) as error:
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
        with torch.inference_mode():
            rows, given = language_model_pass(model, found.inputs)
    finally:
        hook.remove()
    if given.get("deepstack_visual_embeds"):
        raise YopoError("Healing does not know visual features that are added between layers.", "Models with deepstack are pruned without.")
    places = found.inputs["input_ids"][found.visual]
    parts = by_token(torch.cat(seen), places, placeholders_of(model)).split(found.visual.sum(1).tolist())
    for sample, part in enumerate(parts):
        valid = found.mask[sample]
        positions = given.get("position_ids")
        if positions is not None:
            positions = positions.expand(*positions.shape[:-2], len(parts), -1)[..., sample, valid]
        tensors = (found.inputs["input_ids"][sample, valid], positions, part, rows[sample, found.predicts[sample]])
        yield TeacherAnswer(*(None if tensor is None else tensor.cpu() for tensor in tensors))  # type: ignore[arg-type]


def by_token(rows: Tensor, ids: Tensor, placeholders: Sequence[int]) -> Tensor:
    """Rows that come by placeholder, as the tower is given pictures first and then videos, in the order of the visual tokens `ids`."""
    kinds = (ids[:, None] == ids.new_tensor(placeholders)).int().argmax(1)
    return rows[kinds.argsort(stable=True).argsort()]


def write_whole(file: Path, data: bytes) -> None:
    """Write a small file, whole or not at all, also where several processes write it at once."""
    with whole_file(file) as partial:
        partial.write_bytes(data)
