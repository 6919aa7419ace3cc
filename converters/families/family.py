"""What a model family is: facts, as data. One file of facts a family; nothing else in the project asks for a model type."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import YopoError
from ..runtime.plan import Grid, Sizes

if TYPE_CHECKING:  # names of models are looked up without it, and it takes seconds
    from torch import Tensor

Config = Mapping[str, Any]
SHARED_WIDTH = ("llama", "mistral", "qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text")
"""Language models whose heads share the hidden size where config.json has no `head_dim`."""
Shape = tuple[int, ...]


class Change(Protocol):
    """How a tensor of the model is made from one on disk; its shape is known before a weight is read."""

    def shape(self, shape: Shape) -> Shape: ...

    def apply(self, tensor: "Tensor") -> "Tensor": ...


@dataclass(frozen=True)
class RowRange:
    """Of a fused tensor's rows, cut into `groups` equal groups of `parts` equal parts each: parts `first` to `last` of every group."""

    groups: int
    parts: int
    first: int
    last: int

    def shape(self, shape: Shape) -> Shape:
        return (shape[0] // self.parts * (self.last - self.first), *shape[1:])

    def apply(self, tensor: "Tensor") -> "Tensor":
        grouped = tensor.reshape(self.groups, self.parts, -1, *tensor.shape[1:])
        return grouped[:, self.first : self.last].flatten(0, 2)


@dataclass(frozen=True)
class Grown:
    """A vocabulary grown to `rows` rows; the new ones are the mean of the others, so that none is ever the likeliest token."""

    rows: int

    def shape(self, shape: Shape) -> Shape:
        return (self.rows, *shape[1:])

    def apply(self, tensor: "Tensor") -> "Tensor":
        import torch

        grown = tensor.new_empty(self.shape(tuple(tensor.shape)))
        grown[: len(tensor)] = tensor
        grown[len(tensor) :] = tensor.mean(0, dtype=torch.float32)
        return grown


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the model, by v5 name: a tensor on disk, or what `change` makes of it."""

    name: str
    change: Change | None = None


@dataclass(frozen=True)
class Renaming:
    """A layout on disk: of names that match `pattern`, the matched part is written anew. No piece: the model does not use the tensor."""

    pattern: re.Pattern[str]
    pieces: tuple[ModelTensor, ...]

    def of(self, name: str) -> tuple[ModelTensor, ...] | None:
        """The pieces of a tensor on disk, None if this is not its renaming."""
        if (match := self.pattern.match(name)) is None:
            return None
        return tuple(ModelTensor(match.expand(piece.name) + name[match.end() :], piece.change) for piece in self.pieces)


def renaming(pattern: str, replacement: str | None) -> Renaming:
    return Renaming(re.compile(pattern), () if replacement is None else (ModelTensor(replacement),))


def splitting(pattern: str, *pieces: tuple[str, Change]) -> Renaming:
    """A tensor on disk that is several of the model's, or a changed one."""
    return Renaming(re.compile(pattern), tuple(ModelTensor(name, change) for name, change in pieces))


@dataclass(frozen=True)
class Layer:
    """Names of one decoder layer's projections below `model.language_model.layers.N.`, v5 module names.

    Projections of one name are one fused matrix, their rows in the order of these fields.
    """

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    def rows(self, part: str, sizes: Sizes) -> range:
        """Where the rows of a projection are in its matrix: in a fused one others come before them."""
        keys = sizes.num_key_value_heads * sizes.head_dim
        counts = {"query": sizes.num_attention_heads * sizes.head_dim, "key": keys, "value": keys}
        counts |= dict.fromkeys(("gate", "up"), sizes.intermediate_size)
        parts = [other for other in counts if getattr(self, other) == getattr(self, part)]
        first = sum(counts[other] for other in parts[: parts.index(part)])
        return range(first, first + counts[part])


@dataclass(frozen=True)
class Folders:
    """Where a checkpoint is: its own folder, and that of its vision tower where this is another model's."""

    model: Path
    tower: Path | None = None


def by_tokens(pixels: "Tensor", batch: Mapping[str, Any], counts: Sequence[int]) -> Sequence["Tensor"]:
    """Rows of pixels that are as many as their sample's visual tokens, up to a factor."""
    shares: Sequence[Tensor] = pixels.split([count * len(pixels) // sum(counts) for count in counts])
    return shares


@dataclass(frozen=True)
class Visual:
    """A kind of visual input: its placeholder's id, what a processor calls its pixels, and a batch's grids of it, in order.

    `shares(pixels, batch, counts)` gives each sample's part of the pixels, without padding; `counts` are its visual tokens of this kind.
    """

    token: int
    pixels: str
    grids: Callable[[Mapping[str, Any]], Iterator[Grid]]
    shares: Callable[["Tensor", Mapping[str, Any], Sequence[int]], Sequence["Tensor"]] = by_tokens


def _as_it_is(config: Config, folders: Folders) -> Mapping[str, Any]:
    return config


def black_squares(config: Config, grids: Sequence[Grid], count: int) -> dict[str, "Tensor"]:
    """Pixels of pictures or tiles of the tower's own size."""
    import torch

    size = config["vision_config"]["image_size"]
    return {"pixel_values": torch.zeros(count * len(grids), 3, *(size if isinstance(size, list | tuple) else (size, size)))}


@dataclass(frozen=True)
class Family:
    """A family of vision-language models, in one of the layouts in which people have it.

    `model_type` is the native one of transformers, `architecture` its class; `yopo_model_type`, `yopo_architecture` and
    `yopo_config` name the runtime's own, defined in `runtime/modeling_<yopo_model_type>.py`. `renamings` are tried in order on
    every tensor name, after those of `splits`, which depend on the config; the first match wins, and a name that none matches is
    an error. `sizes` reads the language model's sizes, `grid` the visual grid of one default-resolution image, `image_token` the
    placeholder's id; `picture` the grids of one such image where it has several, None: that one. `kinds` tells what it sees where that is
    pictures of any grid and videos, None: pictures or tiles of that grid. `black` makes a processor's outputs for so many samples of
    black pictures of these grids each: pixels, and grids where they differ.
    `projector` names the tensors that healing may change. `native` gives the config in transformers' words, with what the other
    files of the folders know; `tower` tells which model the vision tower is taken from where it is not in the files. `adapt` writes
    tokenizer, processor, chat template and generation config into a folder; None: the checkpoint's own are transformers' and are
    copied. `packages` gives, for export targets that are other runtimes, the model type by which these take the family's graphs.
    """

    name: str
    model_type: str
    architecture: str
    yopo_model_type: str
    yopo_architecture: str
    yopo_config: str
    recognises: Callable[[Config], bool]
    renamings: tuple[Renaming, ...]
    sizes: Callable[[Config], Sizes]
    grid: Callable[[Config], Grid]
    image_token: Callable[[Config], int]
    picture: Callable[[Config], tuple[Grid, ...]] | None = None
    kinds: Callable[[Config], tuple[Visual, ...]] | None = None
    black: Callable[[Config, Sequence[Grid], int], dict[str, "Tensor"]] = black_squares
    text_prefix: str = "model.language_model."
    projector: str = "model.multi_modal_projector."
    layer: Layer = Layer()
    splits: Callable[[Config], tuple[Renaming, ...]] = lambda config: ()
    native: Callable[[Config, Folders], Mapping[str, Any]] = _as_it_is
    tower: Callable[[Config], str | None] = lambda config: None
    adapt: Callable[[Config, Folders, Path], None] | None = None
    packages: tuple[tuple[str, str], ...] = ()

    def grids(self, config: Config) -> tuple[Grid, ...]:
        """Of one default-resolution image."""
        return (self.grid(config),) if self.picture is None else self.picture(config)

    def whole(self, config: Config, grid: Grid) -> tuple[Grid, ...]:
        """The grids of a picture of which `grid` is the last."""
        return (grid,) if self.picture is None else (self.grid(config), grid)

    def first_picture(self, grids: tuple[Grid, ...]) -> tuple[Grid, ...]:
        """Of the grids of pictures, those of the first."""
        return grids[: 1 if self.picture is None else 2]

    def visuals(self, config: Config) -> tuple[Visual, ...]:
        """What the model sees, by placeholder."""
        if self.kinds is not None:
            return self.kinds(config)
        grid = self.grid(config)
        return (Visual(self.image_token(config), "pixel_values", lambda batch: repeat(grid)),)

    def placeholders(self, config: Config) -> tuple[int, ...]:
        """The tokens in whose places visual features stand."""
        return tuple(kind.token for kind in self.visuals(config))

    def pieces(self, name: str, config: Config) -> tuple[ModelTensor, ...]:
        """What a tensor on disk is in the model, () for one that it does not use. Raises YopoError if unknown."""
        for rule in (*self.splits(config), *self.renamings):
            if (pieces := rule.of(name)) is not None:
                return pieces
        raise YopoError(
            f"The tensor {name!r} does not belong to a {self.name} checkpoint.",
            "Only unquantised checkpoints of this architecture can be read; was an adapter or another model saved with it?",
        )


def parsed(config: Config) -> Any:
    """The config as transformers understands it, defaults filled in: of the Hub's forms too, flat or in older words."""
    # Imported here, since names of models are looked up without it and it takes seconds.
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))


def stated_sizes(text: Mapping[str, Any]) -> Sizes | None:
    """Sizes of a language model whose config.json states them all; None where transformers has to fill in a default."""
    stated = {field.name: text[field.name] for field in fields(Sizes) if isinstance(text.get(field.name), int)}
    if (
        {"hidden_size", "num_attention_heads"} <= stated.keys()
        and text.get("model_type") in SHARED_WIDTH
        and text["num_attention_heads"] > 0
    ):
        stated.setdefault("head_dim", text["hidden_size"] // text["num_attention_heads"])
    window = text.get("sliding_window") if text.get("use_sliding_window") is not False else None
    return Sizes(**stated) if len(stated) == len(fields(Sizes)) and window is None else None


def text_sizes(text: Any) -> Sizes:
    """Sizes of a language model from its config as transformers parses it. Raises YopoError for one that does not see all text."""
    window, positions = getattr(text, "sliding_window", None), text.max_position_embeddings
    if window is not None and window < positions:
        raise YopoError(f"A sliding window of {window} of {positions} tokens is not supported.", "Use a model whose text sees all text.")
    return Sizes(
        text.hidden_size,
        text.intermediate_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
    )
