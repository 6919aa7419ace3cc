"""A pruned model made in memory from the dense one, as `yopo convert` would write and load it: for comparing plans."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.compensation import merged
from ..checkpoint.permutation import permutations
from ..checkpoint.visual_projections import refitted_layers
from ..families import Family, family_of
from ..planning.compensation import LinearCompensation
from ..planning.fitting import fit_compensations
from ..runtime.plan import Plan, Sizes, factored, normalise, to_json


@dataclass(frozen=True)
class InMemory:
    """A model's tensors in the place of a checkpoint's."""

    family: Family
    sizes: Sizes
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def planned(dense: Any, plan: Plan, questions: Callable[[], Iterator[Any]] | None = None) -> Any:
    """The pruned model of a plan; what does not move is shared with `dense`, transformers' own model.

    With `questions`, processor outputs, visual K and V are refitted on them; a plan with ranks needs them.
    """
    plan = normalise(plan)
    if questions is None and factored(plan):
        raise ValueError("a plan with ranks is fitted on questions")
    refits = fit_compensations(dense, questions(), plan) if questions is not None else {}
    family = family_of(dense.config.to_dict())
    source = InMemory(family, plan.sizes, dense.state_dict())
    state = moved(source, plan) | added(source, plan, refits)
    section = {"plan": to_json(plan), "refitted": list(refitted_layers(plan, refits))}
    module = import_module(f"converters.runtime.modeling_{family.yopo_model_type}")
    config = getattr(module, family.yopo_config)(**{**dense.config.to_dict(), "yopo": section})
    with torch.device("meta"):
        pruned: Any = getattr(module, family.yopo_architecture)._from_config(config, dtype=dense.dtype)
    for name, part in dense.model.named_children():
        if part is not dense.get_decoder():
            setattr(pruned.model, name, part)
    pruned.load_state_dict(state, assign=True)
    pruned.get_decoder().rotary_emb = dense.get_decoder().rotary_emb
    pruned.generation_config = dense.generation_config
    return pruned.eval()


def moved(source: InMemory, plan: Plan) -> dict[str, Tensor]:
    """All tensors in the plan's order of heads and neurons."""
    order = permutations(source.family, plan)
    return {name: order[name].apply(tensor) if name in order else tensor for name, tensor in source.tensors.items()}


def added(source: InMemory, plan: Plan, refits: Mapping[int, LinearCompensation]) -> dict[str, Tensor]:
    """The projections of refitted layers."""
    projections = merged(source, plan, refits)  # type: ignore[arg-type]
    return {
        name: one.tensor().to(source.read(one.base if one.base in source.tensors else f"{one.base}.weight").device)
        for name, one in projections.items()
    }
