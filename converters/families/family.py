"""What a model family is: facts, as data. One file of facts a family; nothing else in the project asks for a model type."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import YopoError
from ..runtime.plan import Grid, Sizes

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Renaming:
    """A layout on disk: names that match `pattern` are written `replacement` in the v5 module names; None drops the tensor."""

    pattern: re.Pattern[str]
    replacement: str | None


def renaming(pattern: str, replacement: str | None) -> Renaming:
    return Renaming(re.compile(pattern), replacement)


@dataclass(frozen=True)
class Layer:
    """Names of one decoder layer's projections below `model.language_model.layers.N.`, v5 module names."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


@dataclass(frozen=True)
class Family:
    """A family of vision-language models.

    `model_type` is the native one of transformers, `architecture` its class; `yopo_model_type`, `yopo_architecture` and
    `yopo_config` name the runtime's own, defined in `runtime/modeling_<yopo_model_type>.py`. `renamings` are tried in order on
    every tensor name, the first match wins; a name that none matches is an error. `sizes` reads the language model's sizes,
    `grid` the visual grid of one default-resolution image, `image_token` the placeholder's id.
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
    text_prefix: str = "model.language_model."
    layer: Layer = Layer()

    def v5_name(self, name: str) -> str | None:
        """The v5 module name of a tensor on disk, None for one that the model does not use. Raises YopoError if unknown."""
        for rule in self.renamings:
            if match := rule.pattern.match(name):
                return None if rule.replacement is None else match.expand(rule.replacement) + name[match.end() :]
        raise YopoError(
            f"The tensor {name!r} does not belong to a {self.name} checkpoint.",
            "Only unquantised checkpoints of this architecture can be read; was an adapter or another model saved with it?",
        )
