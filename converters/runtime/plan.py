"""The plan: which heads, neurons and neighbours visual tokens take part in, layer by layer.

Indices are those of the dense model. A plan is complete and printable before a weight is touched; it is JSON with a schema
version, and an unknown key is an error. Only the standard library is needed to read one.
"""

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SCHEMA = 1
MAX_STRIDE = 16
LOCALITIES = ("causal", "symmetric")
LIMITS = {
    "hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14, "head_dim": 1 << 14,
}  # fmt: skip
"""Sizes that no model reaches: larger ones are an error in a file, which would cost memory or hours before it shows."""
MAX_NEURONS, MAX_VISUAL_TOKENS = 1 << 25, 1 << 24
PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


class PlanError(ValueError):
    """A plan that cannot be obeyed: what is wrong, with the values."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a language model, in the words of its Hugging Face config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_attention_heads // self.num_key_value_heads


@dataclass(frozen=True, order=True)
class Grid:
    """Visual tokens of one image or tile (`frames` 1) or of one video, row-major within a frame."""

    rows: int
    columns: int
    frames: int = 1

    @property
    def tokens(self) -> int:
        return self.rows * self.columns * self.frames

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}" + (f"x{self.frames}" if self.frames > 1 else "")


@dataclass(frozen=True)
class LayerPlan:
    """What visual tokens take part in within one layer. Sorted indices of the dense model.

    `read_heads`: query heads in which text sees visual keys. `self_heads`: query heads that visual tokens compute for
    themselves. `neurons`: FFN neurons computed for visual tokens. `window`: odd side of the square of grid neighbours that a
    visual query sees, None for all. `read_stride`: read-only KV heads show text every
    so many-th visual token. `kv_rank`: K and V of visual
    tokens, and the queries of self heads, are made through so many dimensions, by factors that are fitted to the model (see
    `planning.compensation`); None: by the whole projections.
    """

    read_heads: tuple[int, ...]
    self_heads: tuple[int, ...]
    neurons: tuple[int, ...]
    window: int | None = None
    read_stride: int = 1
    kv_rank: int | None = None

    @property
    def ranked_queries(self) -> bool:
        """Whether visual queries are made through the dimensions of K and V."""
        return self.kv_rank is not None and bool(self.self_heads)

    def kv_heads(self, sizes: Sizes) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """KV heads that self heads need, and those that text alone reads."""
        needed = {head // sizes.group for head in self.self_heads}
        read = {head // sizes.group for head in self.read_heads}
        return tuple(sorted(needed)), tuple(sorted(read - needed))


@dataclass(frozen=True)
class Plan:
    """A plan for a model of these sizes. `grids` are the reference visual grids that its cost is counted on."""

    sizes: Sizes
    layers: tuple[LayerPlan, ...]
    grids: tuple[Grid, ...]
    locality: str = "causal"

    @property
    def visual_depth(self) -> int:
        """1 + the last layer in which text reads visual tokens; from there on nothing visual is computed."""
        return max((index + 1 for index, layer in enumerate(self.layers) if layer.read_heads), default=0)

    @property
    def visual_tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)


def factored(plan: Plan) -> tuple[int, ...]:
    """Layers whose visual K and V have a rank: they take factors that are fitted."""
    return tuple(index for index, layer in enumerate(plan.layers) if layer.kv_rank is not None)


def dense_plan(sizes: Sizes, grids: tuple[Grid, ...]) -> Plan:
    """The plan that prunes nothing."""
    heads = tuple(range(sizes.num_attention_heads))
    layer = LayerPlan(heads, heads, tuple(range(sizes.intermediate_size)))
    return Plan(sizes, (layer,) * sizes.num_hidden_layers, grids)


def normalise(plan: Plan) -> Plan:
    """The same function, written without updates that nobody reads, so that equal functions have equal plans.

    From layer `visual_depth - 1` on visual tokens need K and V only. A layer without self heads has no window, one without read-only
    KV heads a read stride of 1, one that holds no visual tokens no rank; a locality without a window anywhere is causal.
    """
    depth = plan.visual_depth
    layers = []
    for index, layer in enumerate(plan.layers):
        if index >= depth - 1:
            layer = replace(layer, self_heads=(), neurons=())
        if not layer.self_heads:
            layer = replace(layer, window=None)
        if not layer.kv_heads(plan.sizes)[1]:
            layer = replace(layer, read_stride=1)
        if not layer.read_heads and not layer.self_heads:
            layer = replace(layer, kv_rank=None)
        layers.append(layer)
    windows = any(layer.window for layer in layers)
    return replace(plan, layers=tuple(layers), locality=plan.locality if windows else "causal")


def validate(plan: Plan) -> Plan:
    """Return the plan, or raise PlanError naming the layer, the field and the value that cannot be."""
    sizes = validate_sizes(plan.sizes)
    if len(plan.layers) != sizes.num_hidden_layers:
        raise PlanError(f"the plan has {len(plan.layers)} layers, the model {sizes.num_hidden_layers}")
    if plan.locality not in LOCALITIES:
        raise PlanError(f"locality is {plan.locality!r}, not one of {', '.join(LOCALITIES)}")
    validate_grids(plan.grids)
    for index, layer in enumerate(plan.layers):
        _validate_layer(f"layer {index}", layer, sizes)
    return plan


def validate_sizes(sizes: Sizes) -> Sizes:
    """Return the sizes, or raise PlanError for those that no model has: before anything is made of them."""
    for name, limit in LIMITS.items():
        _within(getattr(sizes, name), 1, limit, name)
    if sizes.num_attention_heads % sizes.num_key_value_heads:
        raise PlanError(f"{sizes.num_attention_heads} attention heads cannot share {sizes.num_key_value_heads} KV heads")
    _within(sizes.num_hidden_layers * sizes.intermediate_size, 1, MAX_NEURONS, "the neurons of all layers")
    return sizes


def validate_grids(grids: tuple[Grid, ...]) -> tuple[Grid, ...]:
    """Return the reference grids, or raise PlanError for none, empty ones, and more visual tokens than a context has."""
    if not grids or any(min(grid.rows, grid.columns, grid.frames) < 1 for grid in grids if _integers(grid)):
        raise PlanError("the plan needs at least one reference grid, of at least one row, column and frame")
    _within(sum(grid.tokens for grid in grids), 1, MAX_VISUAL_TOKENS, "the visual tokens of all grids")
    return grids


def _integers(grid: Grid) -> bool:
    for name in ("rows", "columns", "frames"):
        _integer(getattr(grid, name), f"a grid's {name}")
    return True


def _validate_layer(what: str, layer: LayerPlan, sizes: Sizes) -> None:
    limits = {"read_heads": sizes.num_attention_heads, "self_heads": sizes.num_attention_heads, "neurons": sizes.intermediate_size}
    for name, limit in limits.items():
        kept = getattr(layer, name)
        if any(type(one) is not int for one in kept) or list(kept) != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < limit):
            raise PlanError(f"{what}: {name} must be sorted, unique and within 0..{limit - 1}")
    if layer.window is not None and (_integer(layer.window, f"{what}: window") < 1 or layer.window % 2 == 0):
        raise PlanError(f"{what}: window is {layer.window}, not an odd number of at least 1")
    _within(layer.read_stride, 1, MAX_STRIDE, f"{what}: read_stride")
    if layer.kv_rank is not None:
        _within(layer.kv_rank, 1, sizes.hidden_size, f"{what}: kv_rank")


def _integer(value: Any, what: str) -> int:
    """The value, which must be a whole number; True is none."""
    if type(value) is not int:
        raise PlanError(f"{what} is {value!r:.40}, not a whole number")
    return value


def _within(value: Any, low: int, high: int, what: str) -> None:
    if not low <= _integer(value, what) <= high:
        raise PlanError(f"{what} is {value}, not within {low}..{high}")


def ranges(indices: tuple[int, ...]) -> str:
    """Sorted indices as text, `0-3,7`: a config of a 7B model with kept neurons stays readable."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def indices(text: Any, limit: int) -> tuple[int, ...]:
    """The inverse of `ranges`, for indices below `limit`. Raises PlanError for anything else, before it is made."""
    if not isinstance(text, str):
        raise PlanError(f"{text!r:.40} is not a text of indices")
    found: list[int] = []
    for part in text.split(",") if text else ():
        match = PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if first > last:
            raise PlanError(f"{part!r:.40} is not an index or a range of indices")
        if last >= limit:
            raise PlanError(f"{part!r:.40} is not within 0..{limit - 1}")
        found.extend(range(first, last + 1))
        if len(found) > limit:
            raise PlanError("indices must be sorted and unique")
    return tuple(found)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON object; `from_json` is its inverse."""
    return {
        "schema": SCHEMA,
        "sizes": asdict(plan.sizes),
        "grids": [[grid.rows, grid.columns, grid.frames] for grid in plan.grids],
        "locality": plan.locality,
        "layers": [
            {
                "read_heads": ranges(layer.read_heads),
                "self_heads": ranges(layer.self_heads),
                "neurons": ranges(layer.neurons),
                "window": layer.window,
                "read_stride": layer.read_stride,
                "kv_rank": layer.kv_rank,
            }
            for layer in plan.layers
        ],
    }


def from_json(data: Any) -> Plan:
    """Read and validate a plan. Raises PlanError for another schema, an unknown or missing key, or impossible values."""
    if not isinstance(data, dict) or "schema" not in data:
        raise PlanError("this is not a plan: it has no schema")
    if type(data["schema"]) is not int or data["schema"] != SCHEMA:
        raise PlanError(f"the plan's schema is {data['schema']!r:.40}, this version reads {SCHEMA}")
    _exactly(data, {"schema", "sizes", "grids", "locality", "layers"}, "the plan")
    _exactly(data["sizes"], {field.name for field in fields(Sizes)}, "the plan's sizes")
    sizes = validate_sizes(Sizes(**data["sizes"]))
    layers = [_layer(f"layer {index}", layer, sizes) for index, layer in enumerate(_list(data["layers"], "layers"))]
    grids = [_list(grid, "a grid") for grid in _list(data["grids"], "grids")]
    if any(len(grid) != 3 for grid in grids):
        raise PlanError("a grid is not a list of rows, columns and frames")
    if not isinstance(data["locality"], str):
        raise PlanError(f"locality is {data['locality']!r:.40}, not one of {', '.join(LOCALITIES)}")
    return validate(Plan(sizes, tuple(layers), tuple(Grid(*grid) for grid in grids), data["locality"]))


def _layer(what: str, data: Any, sizes: Sizes) -> LayerPlan:
    _exactly(data, {field.name for field in fields(LayerPlan)}, what)
    heads = sizes.num_attention_heads
    try:
        read_heads, self_heads, neurons = (
            indices(data["read_heads"], heads),
            indices(data["self_heads"], heads),
            indices(data["neurons"], sizes.intermediate_size),
        )
    except PlanError as error:
        raise PlanError(f"{what}: {error}") from None
    return LayerPlan(read_heads, self_heads, neurons, data["window"], data["read_stride"], data["kv_rank"])


def _list(data: Any, what: str) -> list[Any]:
    if not isinstance(data, list):
        raise PlanError(f"{what} is {data!r:.40}, not a list")
    return data


def _exactly(data: Any, keys: set[str], what: str) -> None:
    if not isinstance(data, dict):
        raise PlanError(f"{what} is not an object")
    if unknown := sorted(set(data) - keys):
        raise PlanError(f"{what} has an unknown key: {', '.join(unknown)}")
    if missing := sorted(keys - set(data)):
        raise PlanError(f"{what} lacks {', '.join(missing)}")
