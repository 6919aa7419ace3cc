"""Outputs and arguments whose names differ between releases of transformers: the installed one decides."""

from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

Output = TypeVar("Output")
IGNORED = -100
"""The label of a position that takes no part in a loss."""

CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""What the KV cache is called in arguments and outputs: `cache` from 5.24 on."""


def output_of(kind: type[Output], cache: Any, **values: Any) -> Output:
    """An output of this class, with those of the values that the class has a field for."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in {CACHE: cache, **values}.items() if name in names})


def refuse_other_outputs(arguments: dict[str, Any], config: Any) -> None:
    """Raise ValueError where a call's arguments, or a config, ask for what a pruned model does not have."""
    for name in ("output_attentions", "output_hidden_states"):
        asked = arguments.get(name)
        if getattr(config, name, False) if asked is None else asked:
            raise ValueError(
                f"{name} is not available while visual work is skipped: visual rows have no values to return. "
                "Use `with model.dense():` to inspect the dense model."
            )


def labels_with_logits(labels: Tensor, logits: Tensor, shifted: bool = False) -> Tensor:
    """Labels `[batch, length]` without those that a visual token or padding would predict, which has no logits: all of them are 0.

    A label is predicted by the token before it, or, where they are `shifted`, by the one in its place.
    """
    unknown = (logits == 0).all(-1).to(labels.device)
    if not shifted:
        unknown = torch.cat([torch.zeros_like(unknown[:, :1]), unknown[:, :-1]], 1)
    return labels.masked_fill(unknown, IGNORED)
