"""A frontier's file: types and ranges, and what its parts say of one another."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ..checkpoint.config_schema import Closed
from ..errors import YopoError
from ..runtime.plan import Plan
from .cost import cost
from .fill_budget import limit_of
from .importance import ImportanceOrder
from .search.moves import visual_flops

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Nats = Annotated[float, Field(ge=0)]
Order = list[Annotated[int, Field(ge=0)]]


class PointFile(Closed):
    asked: Share | None
    reached: Nats
    logit_drift: Nats
    origin: str
    plan: dict[str, Any] | None = None
    layers: dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}$")], dict[str, Any]] = Field(default_factory=dict)
    locality: str | None = None


class OrderFile(Closed):
    read_kv_heads: list[Order]
    self_heads: list[Order]
    neurons: list[Order]
    ratios: list[list[Nats]]


class FrontierFile(Closed):
    version: Literal[1] = Field(alias="schema")
    forwards: Nats
    dense_forwards: Nats | None = None
    questions_from: str
    samples: Count
    seed: int
    model: str
    data: str
    compensated: bool
    asked: Annotated[list[PointFile], Field(min_length=1)]
    path: Annotated[list[PointFile], Field(min_length=1)]
    importance_order: OrderFile


def check(plans: Sequence[Plan], order: ImportanceOrder, data: FrontierFile) -> None:
    """Raise YopoError where plans are of different models, do not cost what is said or what was asked, or an order is not one of units.

    `plans` are those of the file's `asked` and `path`, in its order.
    """
    sizes = plans[0].sizes
    if len({(plan.sizes, plan.grids) for plan in plans}) > 1:
        _refuse("its plans are for different models or grids")
    for plan, said in zip(plans, (*data.asked, *data.path), strict=True):
        _check_cost(plan, said)
    asked = [point.asked for point in data.asked]
    if None in asked or asked != sorted(set(asked), key=lambda share: -(share or 0)):
        _refuse("its budgets do not fall")
    counts = {"read_kv_heads": sizes.num_key_value_heads, "self_heads": sizes.num_attention_heads, "neurons": sizes.intermediate_size}
    for name, count in counts.items():
        _check_orders(getattr(order, name), name, sizes.num_hidden_layers, count)
    if [len(layer) for layer in order.ratios] != [sizes.num_attention_heads] * sizes.num_hidden_layers:
        _refuse("its ratios are not one for each head")


def _check_cost(plan: Plan, said: PointFile) -> None:
    share = cost(plan).share
    if abs(share - said.reached) > 1e-9:
        _refuse(f"a plan reaches {share:.6f} of the visual FLOPs, not {said.reached:.6f} as is said")
    if said.asked is not None and visual_flops(plan) > limit_of(said.asked, plan):
        _refuse(f"the plan for the budget {said.asked:g} costs {share:.6f}")


def _check_orders(orders: Sequence[Sequence[int]], name: str, layers: int, count: int) -> None:
    if len(orders) != layers or any(sorted(order) != list(range(count)) for order in orders):
        _refuse(f"its order of {name} is not one of {count} in each of {layers} layers")


def _refuse(reason: str) -> None:
    raise YopoError(reason)
