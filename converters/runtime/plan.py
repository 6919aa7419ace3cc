"""The plan: which heads, neurons and neighbours visual tokens take part in, layer by layer.

Indices are those of the dense model. A plan is complete and printable before a weight is touched; it is JSON with a schema
version, and an unknown key is an error. Only the standard library is needed to read one.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .stride import MAX_STRIDE

SCHEMA = 1
LOCALITIES = ("causal", "symmetric")


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
    visual query sees, None for all. `read_stride`: a read-only KV head shows text
    every so many-th visual token, at an offset that changes from head to head and layer to layer. `kv_rank`: K and V of visual
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
        own = sorted({head // sizes.group for head in self.self_heads})
        read = {head // sizes.group for head in self.read_heads}
        return tuple(own), tuple(sorted(read - set(own)))


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
    sizes = plan.sizes
    if sizes.num_attention_heads % sizes.num_key_value_heads:
        raise PlanError(f"{sizes.num_attention_heads} attention heads cannot share {sizes.num_key_value_heads} KV heads")
    if len(plan.layers) != sizes.num_hidden_layers:
        raise PlanError(f"the plan has {len(plan.layers)} layers, the model {sizes.num_hidden_layers}")
    if plan.locality not in LOCALITIES:
        raise PlanError(f"locality is {plan.locality!r}, not one of {', '.join(LOCALITIES)}")
    if not plan.grids or any(min(grid.rows, grid.columns, grid.frames) < 1 for grid in plan.grids):
        raise PlanError("the plan needs at least one reference grid, of at least one row, column and frame")
    limits = {"read_heads": sizes.num_attention_heads, "self_heads": sizes.num_attention_heads, "neurons": sizes.intermediate_size}
    for index, layer in enumerate(plan.layers):
        for name, limit in limits.items():
            kept = getattr(layer, name)
            if list(kept) != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < limit):
                raise PlanError(f"layer {index}: {name} must be sorted, unique and within 0..{limit - 1}")
        if layer.window is not None and (layer.window < 1 or layer.window % 2 == 0):
            raise PlanError(f"layer {index}: window is {layer.window}, not an odd number of at least 1")
        if not 1 <= layer.read_stride <= MAX_STRIDE:
            raise PlanError(f"layer {index}: read_stride is {layer.read_stride}, not within 1..{MAX_STRIDE}")
        if layer.kv_rank is not None and not 1 <= layer.kv_rank <= sizes.hidden_size:
            raise PlanError(f"layer {index}: kv_rank is {layer.kv_rank}, not within 1..{sizes.hidden_size}")
    return plan


def ranges(indices: tuple[int, ...]) -> str:
    """Sorted indices as text, `0-3,7`: a config of a 7B model with kept neurons stays readable."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def indices(text: str) -> tuple[int, ...]:
    """The inverse of `ranges`. Raises PlanError for anything else."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        try:
            found.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            raise PlanError(f"{part!r} is not an index or a range of indices") from None
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
    if data["schema"] != SCHEMA:
        raise PlanError(f"the plan's schema is {data['schema']!r}, this version reads {SCHEMA}")
    _exactly(data, {"schema", "sizes", "grids", "locality", "layers"}, "the plan")
    _exactly(data["sizes"], {field.name for field in fields(Sizes)}, "the plan's sizes")
    layer_keys = {field.name for field in fields(LayerPlan)}
    layers = []
    for index, layer in enumerate(data["layers"]):
        _exactly(layer, layer_keys, f"layer {index}")
        kept = {name: indices(layer[name]) for name in ("read_heads", "self_heads", "neurons")}
        layers.append(LayerPlan(**{**layer, **kept}))
    try:
        grids = tuple(Grid(*grid) for grid in data["grids"])
        plan = Plan(Sizes(**data["sizes"]), tuple(layers), grids, data["locality"])
        return validate(plan)
    except TypeError as error:
        raise PlanError(f"the plan has a value of the wrong type: {error}") from None


def _exactly(data: Any, keys: set[str], what: str) -> None:
    if not isinstance(data, dict):
        raise PlanError(f"{what} is not an object")
    if unknown := sorted(set(data) - keys):
        raise PlanError(f"{what} has an unknown key: {', '.join(unknown)}")
    if missing := sorted(keys - set(data)):
        raise PlanError(f"{what} lacks {', '.join(missing)}")
