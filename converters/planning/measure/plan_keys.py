"""Plans compared: the first layer in which two differ, and a name for what one does."""

import hashlib
from functools import lru_cache

from ...runtime.plan import LayerPlan, Plan, ranges


def first_difference(one: Plan, other: Plan) -> int:
    """The first layer that two normalised plans treat differently; the number of layers where there is none."""
    same_windows = one.locality == other.locality
    for index, (first, second) in enumerate(zip(one.layers, other.layers, strict=True)):
        if first != second or (first.window is not None and not same_windows):
            return index
    return len(one.layers)


def plan_key(plan: Plan) -> str:
    """A name for what a normalised plan does, the same in every run."""
    text = f"{plan.locality} " + " ".join(map(_layer_key, plan.layers))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=4096)
def _layer_key(layer: LayerPlan) -> str:
    kept = ";".join(map(ranges, (layer.read_heads, layer.self_heads, layer.neurons)))
    return f"{kept};{layer.window};{layer.read_stride};{layer.kv_rank}"
