"""Reading a checkpoint lazily, by v5 name, after everything that its headers can tell has been checked."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import YopoError
from ..families import Family, Folders, converted_family, described, family_of, sizes_and_grids
from ..families.family import ModelTensor
from ..json_files import read_object
from ..runtime.plan import Grid, Plan, Sizes, factored
from .config import NEWER, check_config, has_dense_side, is_converted, method_of, read_config, section_plan
from .header import TensorInfo, ends_of, read_header, read_tensor
from .manifest import changed_files, read_manifest
from .permutation import permutations
from .quantised import check_method, companion, readable, without_changes
from .skeleton import Skeleton, check_tensors, native_config, skeleton
from .source import resolve
from .visual_projections import refitted_layers, refitted_shapes

SAMPLE_BYTES = 4096
MAX_INDEX_BYTES = 100_000_000
SHARD = re.compile(r"[^/\\\0]+\.(?:safetensors|bin)")
# Where a healed model keeps the projector that it had before, for its dense side.
BASE_PROJECTOR = "model.base_projector."

Ends = tuple[bytes, bytes]
"""The first and last bytes of a tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's directory: its config in transformers' words, and its tensors by v5 name, none of them read yet.

    `grids` are those of one picture of the default resolution.
    `base` are the projector's tensors as they were before healing, under the projector's own names; {} where it was not healed.
    `refitted` are the projections that visual tokens of a converted model have for themselves, which the dense model lacks.
    `beside` are, by quantised weight that stays as it is, the tensors that stand beside it, by what they are to it.
    """

    path: Path
    config: dict[str, Any]
    family: Family
    sizes: Sizes
    grids: tuple[Grid, ...]
    tensors: dict[str, TensorInfo]
    base: dict[str, TensorInfo] = field(default_factory=dict)
    refitted: dict[str, TensorInfo] = field(default_factory=dict)
    beside: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)
    _adapt: Callable[[Path], None] | None = field(default=None, repr=False, compare=False)

    def info(self, name: str) -> TensorInfo:
        """Of a tensor of the model, refitted ones included."""
        return self.refitted[name] if name in self.refitted else self.tensors[name]

    @property
    def stored(self) -> dict[str, TensorInfo]:
        """The tensors that pruned computing takes: the model's, and refitted ones."""
        return self.tensors | self.refitted

    @property
    def written(self) -> dict[str, TensorInfo]:
        """The tensors as a conversion has them: quantised weights as they are, and what stands beside them."""
        kept = {name: replace(self.tensors[name], change=None) for name in self.beside}
        names = ((name.removesuffix("weight") + ending, info) for name, parts in self.beside.items() for ending, info in parts.items())
        return self.tensors | kept | dict(names)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own; a quantised one as the numbers that it stands for.

        Raises YopoError where its file has become shorter.
        """
        return self.read_as(self.info(name))

    def read_base(self, name: str) -> Tensor:
        """The same of the projector as it was before healing."""
        return self.read_as(self.base[name])

    @staticmethod
    def read_as(info: TensorInfo) -> Tensor:
        """A tensor as its info has it."""
        tensor = read_tensor(info)
        return tensor if info.change is None else info.change.apply(tensor)

    def _ends(self, name: str) -> Ends:
        """The first and last bytes of a tensor, without reading what is between, where that can be."""
        info = self.tensors[name]
        if info.change is None and info.extent.strides is None:
            return ends_of(info, SAMPLE_BYTES)
        return _ends(self.read_as(info))

    @property
    def bytes(self) -> int:
        return sum(info.bytes for info in self.stored.values())

    @property
    def foreign(self) -> bool:
        """Whether tokenizer and processor are in another form than transformers'."""
        return self._adapt is not None

    def write_processor(self, output: Path) -> None:
        """Write tokenizer and processor of a foreign checkpoint in transformers' form. Raises YopoError where that cannot be."""
        assert self._adapt is not None
        with described(self.family):
            self._adapt(output)

    def fingerprint(self) -> str:
        """Sha256 of the config, of every tensor's v5 name, dtype and shape, and of its first and last 4 KiB.

        It takes a second where hashing all of a 7B model takes half a minute, and does not depend on layout and sharding. It
        tells models apart; it does not prove that no byte in the middle of a tensor was changed.
        """
        return self.fingerprint_of(self._ends)

    def fingerprint_of(self, ends: Callable[[str], Ends]) -> str:
        """The fingerprint of a model with this one's config and shapes; `ends` are the first and last bytes of its tensors."""
        digest = hashlib.sha256(json.dumps(native_config(self.family, self.config), sort_keys=True).encode())
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(json.dumps([name, info.dtype, info.shape]).encode())
            for sample in ends(name):
                digest.update(sample)
        return digest.hexdigest()


@dataclass(frozen=True)
class Converted:
    """A directory that `convert` wrote, from its config alone. `files` are the sha256 of its files, {} where none are recorded."""

    path: Path
    config: dict[str, Any]
    family: Family
    plan: Plan
    files: dict[str, str]

    @property
    def section(self) -> Mapping[str, Any]:
        """The `yopo` section of config.json."""
        section: Mapping[str, Any] = self.config["yopo"]
        return section

    def open_tensors(self) -> Checkpoint:
        """The model that the files hold, in their own kept-first order. Raises YopoError as `open_checkpoint` does."""
        refitted = refitted_shapes(self.family, self.plan, self.refitted)
        opened = _open(self.path, native_config(self.family, self.config), self.family, self.healed, refitted)
        expected = {name for name in opened.tensors if self.healed and name.startswith(self.family.projector)}
        if different := sorted(opened.base.keys() ^ expected):
            raise YopoError(f"The base projector in {self.path} is not whole: {', '.join(different)}.", "Heal the model again.")
        return opened

    @property
    def refitted(self) -> tuple[int, ...]:
        """Layers whose visual tokens have projections of their own."""
        return tuple(self.section.get("refitted", ()))

    @property
    def healed(self) -> bool:
        """Whether the projector was healed, and the base projector is kept beside it."""
        return bool(self.section.get("base_projector"))

    @property
    def dense_side(self) -> bool:
        """Whether the base model is still in the files."""
        return has_dense_side(self.section)

    def dense_fingerprint(self) -> str:
        """The fingerprint of the dense side: heads and neurons back in the base model's order, with the base projector.

        Where the files hold the base model's weights, whole and nothing else, it is the base model's own. Reads all weights.
        """
        opened, moved = self.open_tensors(), permutations(self.family, self.plan)

        def ends(name: str) -> Ends:
            tensor = opened.read_base(name) if name in opened.base else opened.read(name)
            return _ends(moved[name].inverse().apply(tensor) if name in moved else tensor)

        return opened.fingerprint_of(ends)

    def changed_files(self) -> tuple[str, ...]:
        """Names of recorded files that are missing or differ from what was written; reads all of them."""
        return changed_files(self.path, self.files)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a dense checkpoint, and check everything that can be known without reading weights.

    Raises YopoError: not a checkpoint, a converted one, unsupported or quantised; a shard missing, truncated or not what the index
    says; a tensor unknown, missing or of the wrong shape.
    """
    config = read_config(path)
    if is_converted(config):
        base = config.get("yopo", {}).get("base", {}).get("name", "the base model")
        raise YopoError(f"{path} is pruned already.", f"Convert the model it was made from instead: {base}.")
    family = family_of(config)
    check_method(config, path)
    return _open(path, config, family)


def open_converted(path: Path) -> Converted:
    """Open what `convert` wrote. Raises YopoError if it is something else, or its plan cannot be obeyed by this version."""
    config = read_config(path)
    if not is_converted(config):
        raise YopoError(f"{path} was not written by yopo: its config.json has no plan.", f"Make one: yopo convert {path} --budget 0.25")
    if (family := converted_family(config)) is None:
        raise YopoError(f"The model type {config.get('model_type')!r} of {path} is unknown.", NEWER)
    plan = section_plan(config, path)
    converted = Converted(path, config, family, plan, read_manifest(path))
    if converted.refitted != refitted_layers(plan, {*factored(plan), *converted.refitted} & set(range(len(plan.layers)))):
        raise YopoError(
            f"{path} has a list of refitted layers that does not go with its plan: {list(converted.refitted)}.", "Convert the model again."
        )
    return converted


def _open(
    path: Path, config: dict[str, Any], family: Family, healed: bool = False, refitted: Mapping[str, tuple[int, ...]] = {}
) -> Checkpoint:
    with described(family):
        tower = family.tower(config)
        folders = Folders(path, None if tower is None else resolve(tower).path)
        sizes, grids = sizes_and_grids(family, config)
        native = dict(family.native(config, folders))
    check_config(native, f"The config of {path} in transformers' words")
    expected = skeleton(family, native)
    tensors, beside = _tensors(folders.model, config, family)
    if folders.tower is not None:
        tensors = _tensors(folders.tower, config, family)[0] | tensors
    tensors = readable(tensors, beside, native)
    kept = [name for name in tensors if healed and name.startswith(BASE_PROJECTOR)]
    base = {family.projector + name.removeprefix(BASE_PROJECTOR): tensors.pop(name) for name in kept}
    refitted_tensors = {name: tensors.pop(name) for name in refitted if name in tensors}
    check_tensors(tensors, expected, family)
    check_tensors(tensors | base, expected, family)
    check_tensors(refitted_tensors, Skeleton(refitted, frozenset()), family)
    if expected.tied & tensors.keys():
        native = _untied(native)
    if method_of(native) is not None:
        native = without_changes(native, tensors, beside)
    stay = beside if method_of(native) is not None else {}
    adapt = None if family.adapt is None else partial(family.adapt, config, folders)
    return Checkpoint(path, native, family, sizes, grids, tensors, base, refitted_tensors, stay, adapt)


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model whose output head is its own, whatever a default says: transformers would tie it, or warn and not."""
    text = config.get("text_config")
    nested = {"text_config": text | {"tie_word_embeddings": False}} if text and text.get("tie_word_embeddings") else {}
    return config | nested | {"tie_word_embeddings": False}


def _tensors(path: Path, config: dict[str, Any], family: Family) -> tuple[dict[str, TensorInfo], dict[str, dict[str, TensorInfo]]]:
    """Every tensor of the model by v5 name, wherever and in whatever form it is on disk; and what stands beside quantised ones."""
    tensors: dict[str, TensorInfo] = {}
    beside: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for info in _tensors_on_disk(path):
        if method_of(config) is not None and (found := companion(info.name_on_disk)) is not None:
            for piece in family.pieces(found[0], config):
                beside[piece.name][found[1]] = info
            continue
        base = info.name_on_disk.startswith(BASE_PROJECTOR)
        for piece in (ModelTensor(info.name_on_disk),) if base else family.pieces(info.name_on_disk, config):
            if piece.name in tensors:
                both = f"{tensors[piece.name].name_on_disk!r} and {info.name_on_disk!r}"
                raise YopoError(f"The tensor {piece.name!r} is there twice, as {both}.", "Remove one of the two layouts.")
            shape = info.shape if piece.change is None else piece.change.shape(info.shape)
            tensors[piece.name] = replace(info, shape=shape, change=piece.change)
    return tensors, dict(beside)


def _tensors_on_disk(path: Path) -> Iterator[TensorInfo]:
    """Every tensor of every shard, under the name it has there; what transformers prefers comes first."""
    for single, index in (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (path / single).exists():
            yield from _header(path / single).values()
            return
        if (path / index).exists():
            yield from _indexed(path / index)
            return
    raise YopoError(f"{path} has no weights.", "Expected model.safetensors, its index, or pytorch_model.bin.")


def _indexed(index: Path) -> Iterator[TensorInfo]:
    places = read_object(index, "Fetch it again.", MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) and SHARD.fullmatch(file) for file in places.values()):
        raise YopoError(f"{index} has no weight_map of file names.", "Fetch it again.")
    for shard in sorted(set(places.values())):
        if not (index.parent / shard).is_file():
            raise YopoError(f"The shard {shard} named in {index} is missing.", "Fetch it again, into the same folder.")
    for shard in sorted(set(places.values())):
        header = _header(index.parent / shard)
        listed = {name for name, file in places.items() if file == shard}
        for name in sorted(listed ^ header.keys()):
            what = "lacks the tensor" if name in listed else "has a tensor that the index does not place there:"
            raise YopoError(f"{index.name} and {shard} disagree: the shard {what} {name!r}.", "Fetch both again, from one revision.")
        yield from header.values()


def _header(file: Path) -> dict[str, TensorInfo]:
    return read_header(file) if file.suffix == ".safetensors" else _pickled_header(file)


def _pickled_header(file: Path) -> dict[str, TensorInfo]:
    from .pickled import pickled_header  # takes seconds to import, and few checkpoints are so old

    return pickled_header(file)


def _ends(tensor: Tensor) -> Ends:
    flat = tensor.contiguous().flatten().view(torch.uint8)
    return flat[:SAMPLE_BYTES].numpy().tobytes(), flat[-SAMPLE_BYTES:].numpy().tobytes()
