"""The runtime's twin of a dense model: its classes' ways of reading positions, pictures and fused layers, without a converted model."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from ...families import Family, family_of
from ...runtime.cache import Timeline
from ...runtime.plan import Plan, dense_plan
from ...runtime.stride import MAX_STRIDE
from ...runtime.text_model import Call, Projections, SparseTextModel
from .answers import Answered


@dataclass(frozen=True)
class Twin:
    """The runtime's classes for the language model and the whole of a dense model; `plan` is the one that prunes nothing."""

    model: Any
    plan: Plan
    text_class: Any
    model_class: Any

    @classmethod
    def of(cls, model: Any) -> "Twin":
        """The twin of a dense transformers model, found among the classes of its family's runtime by what they derive from."""
        config = model.config.to_dict()
        family: Family = family_of(config)
        module = import_module(f"converters.runtime.modeling_{family.yopo_model_type}")
        classes = [one for one in vars(module).values() if isinstance(one, type)]
        text_type, model_type = type(model.model.language_model), type(model.model)
        text_class = next(one for one in classes if issubclass(one, text_type) and issubclass(one, SparseTextModel))
        model_class = next(one for one in classes if issubclass(one, model_type) and one is not model_type)
        plan = dense_plan(family.sizes(config), (family.grid(config),))
        return cls(model, plan, text_class, model_class)

    def call(self, answered: Answered) -> Call:
        """A batch at the input of layer 0, for plans of any strides."""
        opening = _Opening(self)
        return opening._call(
            answered.embeds,
            answered.mask.long(),
            answered.positions,
            answered.visual,
            lambda visual, positions: self.model_class.images(self.model.model, visual, positions),
            Timeline(range(1, MAX_STRIDE + 1)),
        )

    def projections(self, index: int) -> Projections:
        """The linear layers of a decoder layer of the dense model."""
        found: Projections = self.text_class.projections(_Opening(self), self.model.model.language_model.layers[index])
        return found

    def kv_weights(self, index: int) -> tuple[Tensor, Tensor]:
        """The weights of a layer's K and V projections."""
        parts = self.projections(index)
        return parts.key.weight, parts.value.weight


class _Opening(SparseTextModel):
    """As much of the runtime's language model as its methods ask for before the first layer runs."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        self.twin, self.plan = twin, twin.plan
        self.rotary_emb = twin.model.model.language_model.rotary_emb

    def rotary(self, *arguments: Any) -> Any:
        return self.twin.text_class.rotary(self, *arguments)
