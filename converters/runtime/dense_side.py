"""The dense side of a converted model: the same weights with the plan switched off, and the projector as it was before healing."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .adapter_check import refuse_other_orders
from .outputs import labels_with_logits
from .switch import is_off


class DenseSide:
    """What the converted models of all families share, beside their forward pass. `projector` is the module that healing may change."""

    projector = "model.multi_modal_projector"
    model: Any
    config: Any
    get_submodule: Any
    get_decoder: Any

    def keep_base_projector(self) -> None:
        """Make the place of the base projector in a model whose projector was healed; its weights are in the files."""
        if (self.config.yopo or {}).get("base_projector"):
            healed = self.get_submodule(self.projector)
            self.model.base_projector = deepcopy(healed)
            healed.register_forward_hook(BaseProjector(self.get_decoder(), self.model.base_projector))

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Within this context the plan is switched off and the base projector in place: the dense model runs.

        For this thread alone; contexts may be nested.
        """
        with self.get_decoder().dense():
            yield

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, visual_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """`generate()`'s inputs of a step; `visual_mask` goes with the `inputs_embeds` of the first."""
        following: Any = super()
        inputs = following.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if visual_mask is not None and inputs.get("inputs_embeds") is not None:
            inputs["visual_mask"] = visual_mask
        return inputs

    @property
    def loss_function(self) -> Any:
        """The model's loss of `labels`, over the positions that have logits: visual tokens predict nothing."""
        following: Any = super()
        whole = following.loss_function

        def loss(logits: Tensor, labels: Tensor, vocab_size: int, shift_labels: Tensor | None = None, **kwargs: Any) -> Any:
            labels = None if labels is None else labels_with_logits(labels, logits)
            if shift_labels is not None:
                kwargs["shift_labels"] = labels_with_logits(shift_labels, logits, shifted=True)
            return whole(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)

        return whole if is_off(self.get_decoder()) else loss

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        PreTrainedModel.loss_function.fset(self, value)

    @property
    def peft_config(self) -> Any:
        """The configs of the adapters by name, which PEFT puts here."""
        try:
            return self.__dict__["_peft_config"]
        except KeyError:
            raise AttributeError("no adapter was ever put on this model") from None

    @peft_config.setter
    def peft_config(self, adapters: Any) -> None:
        language_model = self.get_decoder()
        for adapter in adapters.values():
            refuse_other_orders(adapter, language_model.plan, (self.config.yopo or {}).get("base") or {})
        self.__dict__["_peft_config"] = adapters

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["_peft_config"]

    def path_report(self) -> str:
        """Which path runs, and what the last call did, in one line."""
        report: str = self.get_decoder().report()
        return report


@dataclass(frozen=True)
class BaseProjector:
    """A hook of a healed projector, by which the `base` one answers where the plan of `language_model` is switched off."""

    language_model: Any
    base: Any

    def __call__(self, healed: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return self.base(*inputs) if is_off(self.language_model) else None
