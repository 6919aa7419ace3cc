"""Plans from the published artefacts: a head mask, and what the authors' fine-tuned LLaVA checkpoints say in config.json.

Their words: `attncut_w` is the side of the window, `headcut_num` names the mask, visual tokens use the first `1 / mlpcut_ratio` of the
neurons and leave after `layercut_num` layers; the window also shows later neighbours (symmetric). In their code a pruned head's
probabilities are set to zero after the softmax; here the softmax is taken over what remains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import YopoError
from ..runtime.plan import Grid, LayerPlan, Plan, Sizes, validate

WORDS = ("attncut_w", "layercut_num", "mlpcut_ratio")  # window, layers that keep visual tokens, part of the neurons
MASK_NUMBER = "headcut_num"


@dataclass(frozen=True)
class Cuts:
    """What is cut beside heads; None: nothing. `depth` layers keep visual tokens, which use `1 / ffn_ratio` of the neurons."""

    window: int | None = None
    depth: int | None = None
    ffn_ratio: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """What a checkpoint's config.json says; nothing for one that was not fine-tuned this way."""
        window, depth, ffn_ratio = (config.get(word) or None for word in WORDS)
        return cls(window, depth, ffn_ratio)

    def filled(self, other: "Cuts") -> "Cuts":
        """These, with the other's where nothing is said."""
        missing = {name: value for name, value in vars(other).items() if getattr(self, name) is None}
        return replace(self, **missing)


def read_headmask(file: Path) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Bool `[layers, heads]`, True for kept. Raises YopoError for another file."""
    try:
        mask = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise YopoError(
            f"The head mask {file} cannot be read: {error}.", "It is a numpy file (.npy) of booleans, layers x heads."
        ) from None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
        what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else "an archive"
        raise YopoError(f"The head mask {file} is {what}.", "Expected booleans, layers x heads, True for kept heads.")
    return mask


def config_headmask(config: Mapping[str, Any], sizes: Sizes) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """All heads, for a fine-tuned checkpoint that cuts none. Raises YopoError for one that names a mask, or is no such checkpoint."""
    if not any(config.get(word) for word in WORDS):
        raise YopoError(f"config.json has none of {', '.join(WORDS)}.", "Only the authors' fine-tuned checkpoints tell their own plan.")
    if number := config.get(MASK_NUMBER):
        raise YopoError(f"config.json names a head mask by its number, {number}, and does not hold it.", "Pass it: --plan headmask.npy")
    return np.ones((sizes.num_hidden_layers, sizes.num_attention_heads), dtype=np.bool_)


def headmask_plan(mask: "np.ndarray[Any, np.dtype[np.bool_]]", cuts: Cuts, sizes: Sizes, grids: tuple[Grid, ...]) -> Plan:
    """Text reads visual tokens in the kept heads, and visual tokens compute the same ones. Raises YopoError for what does not fit."""
    _check(mask, cuts, sizes)
    neurons = tuple(range(sizes.intermediate_size // (cuts.ffn_ratio or 1)))
    depth = sizes.num_hidden_layers if cuts.depth is None else cuts.depth
    layers = []
    for index, row in enumerate(mask):
        heads = tuple(int(head) for head in row.nonzero()[0])
        layers.append(LayerPlan(heads, heads, neurons, cuts.window) if index < depth else LayerPlan((), (), ()))
    return validate(Plan(sizes, tuple(layers), grids, "symmetric"))


def _check(mask: "np.ndarray[Any, np.dtype[np.bool_]]", cuts: Cuts, sizes: Sizes) -> None:
    model = (sizes.num_hidden_layers, sizes.num_attention_heads)
    if mask.shape != model:
        raise YopoError(
            f"The head mask has {mask.shape[0]} x {mask.shape[1]} layers x heads, the model {model[0]} x {model[1]}.",
            "It is another model's.",
        )
    if cuts.window is not None and (cuts.window < 1 or cuts.window % 2 == 0):
        raise YopoError(f"The window is {cuts.window}, not an odd number of at least 1.", "The published models have 5.")
    if cuts.depth is not None and not 0 <= cuts.depth <= sizes.num_hidden_layers:
        raise YopoError(
            f"The depth is {cuts.depth}, not within 0..{sizes.num_hidden_layers}.", "It is the number of layers that keep visual tokens."
        )
    if cuts.ffn_ratio is not None and not 1 <= cuts.ffn_ratio <= sizes.intermediate_size:
        raise YopoError(
            f"The FFN ratio is {cuts.ffn_ratio}, not within 1..{sizes.intermediate_size}.", "2 keeps the first half of the neurons."
        )
