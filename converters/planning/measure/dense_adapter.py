"""A dense model as the runtime sees it: positions, pictures and fused layers, read by the classes of its family, without converting it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from ...families import Family, family_of
from ...runtime.cache import Timeline
from ...runtime.call import Call, open_call
from ...runtime.layer_parts import Projections
from ...runtime.offloaded import at_hand
from ...runtime.plan import MAX_STRIDE, Plan, dense_plan
from ...runtime.text_model import SparseTextModel
from .answers import Answered


@dataclass(frozen=True)
class DenseAdapter:
    """The runtime's classes for the language model and the whole of a dense model; `plan` is the one that prunes nothing."""

    model: Any
    plan: Plan
    text_class: Any
    model_class: Any

    @classmethod
    def of(cls, model: Any) -> "DenseAdapter":
        """The adapter of a dense transformers model: of its family's runtime, the classes that derive from the model's."""
        config = model.config.to_dict()
        family: Family = family_of(config)
        module = import_module(f"converters.runtime.modeling_{family.yopo_model_type}")
        classes = [one for one in vars(module).values() if isinstance(one, type)]
        text_type, model_type = type(model.get_decoder()), type(model.model)
        text_class = next(one for one in classes if issubclass(one, text_type) and issubclass(one, SparseTextModel))
        model_class = next(one for one in classes if issubclass(one, model_type) and one is not model_type)
        plan = dense_plan(family.sizes(config), family.grids(config))
        return cls(model, plan, text_class, model_class)

    def call(self, answered: Answered) -> Call:
        """A batch at the input of layer 0, for plans of any strides."""
        rotary = self.text_class.rotary(self.model.get_decoder(), answered.embeds, answered.positions, 0)
        return open_call(
            answered.embeds,
            rotary,
            answered.mask.long(),
            answered.visual,
            lambda visual: self.model_class.images(self.model.model, visual, answered.positions, answered.embeds, answered.videos),
            Timeline(range(1, MAX_STRIDE + 1)),
            deepstack=answered.deepstack,
        )

    def layer_at_hand(self, index: int) -> AbstractContextManager[None]:
        """A context in which a decoder layer's weights are where it runs, should they be kept elsewhere."""
        return at_hand(self.model.get_decoder().layers[index])

    def head_at_hand(self) -> AbstractContextManager[None]:
        """The same of what makes logits of the last layer's rows."""
        return at_hand(self.model.get_decoder().norm, self.model.lm_head)

    def projections(self, index: int) -> Projections:
        """The linear layers of a decoder layer of the dense model."""
        parts: Projections = self.text_class.projections(self.model.get_decoder().layers[index])
        return parts

    def kv_weights(self, index: int) -> tuple[Tensor, Tensor]:
        """The weights of a layer's K and V projections."""
        parts: Any = self.projections(index)
        return parts.key.weight, parts.value.weight
