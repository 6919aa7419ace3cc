"""A frontier's file: types and ranges, and what its parts say of one another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import YopoError
from .fill_budget import limit_of
from .search.moves import visual_flops

if TYPE_CHECKING:
    from .frontier import Frontier, Point

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Nats = Annotated[float, Field(ge=0)]
Order = list[Annotated[int, Field(ge=0)]]


class Closed(BaseModel):
    """No other key, no other type."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class PointFile(Closed):
    asked: Share | None
    reached: Nats
    logit_drift: Nats
    origin: str
    plan: dict[str, Any] | None = None
    layers: dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}$")], dict[str, Any]] = {}
    locality: str | None = None


class OrderFile(Closed):
    read_kv_heads: list[Order]
    self_heads: list[Order]
    neurons: list[Order]
    ratios: list[list[Nats]]


class FrontierFile(Closed):
    version: Literal[1] = Field(alias="schema")
    forwards: Nats
    questions_from: str
    samples: Count
    seed: int
    model: str
    data: str
    compensated: bool
    asked: Annotated[list[PointFile], Field(min_length=1)]
    path: Annotated[list[PointFile], Field(min_length=1)]
    importance_order: OrderFile


def check(frontier: "Frontier", data: FrontierFile) -> None:
    """Raise YopoError where plans are of different models, do not cost what is said or what was asked, or an order is not one of units."""
    first = frontier.asked[0].plan
    points = (*frontier.asked, *frontier.path)
    if len({(point.plan.sizes, point.plan.grids) for point in points}) > 1:
        _refuse("its plans are for different models or grids")
    for point, said in zip(points, (*data.asked, *data.path), strict=True):
        _check_cost(point, said)
    asked = [point.asked for point in frontier.asked]
    if None in asked or asked != sorted(set(asked), key=lambda share: -(share or 0)):
        _refuse("its budgets do not fall")
    counts = {"read_kv_heads": first.sizes.num_key_value_heads, "self_heads": first.sizes.num_attention_heads}
    for name, count in {**counts, "neurons": first.sizes.intermediate_size}.items():
        _check_orders(getattr(frontier.order, name), name, first.sizes.num_hidden_layers, count)
    if [len(layer) for layer in frontier.order.ratios] != [first.sizes.num_attention_heads] * first.sizes.num_hidden_layers:
        _refuse("its ratios are not one for each head")


def _check_cost(point: "Point", said: PointFile) -> None:
    if abs(point.share - said.reached) > 1e-9:
        _refuse(f"a plan reaches {point.share:.6f} of the visual FLOPs, not {said.reached:.6f} as is said")
    if point.asked is not None and visual_flops(point.plan) > limit_of(point.asked, point.plan):
        _refuse(f"the plan for the budget {point.asked:g} costs {point.share:.6f}")


def _check_orders(orders: Sequence[Sequence[int]], name: str, layers: int, count: int) -> None:
    if len(orders) != layers or any(sorted(order) != list(range(count)) for order in orders):
        _refuse(f"its order of {name} is not one of {count} in each of {layers} layers")


def _refuse(reason: str) -> None:
    raise YopoError(reason)
