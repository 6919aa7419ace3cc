"""The order of importance: which heads and neurons of a layer are kept first. All that a recipe knows of the model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..calibration.statistics import Statistics
from ..errors import YopoError
from ..runtime.plan import Sizes


@dataclass(frozen=True)
class LayerScores:
    """What a layer adds, summed over its heads or neurons: to text that reads visual tokens, and to visual tokens themselves."""

    read: float
    self_: float
    neurons: float


@dataclass(frozen=True)
class ImportanceOrder:
    """Orders by layer, best first, and the paper's ratios [layer][head], comparable across layers."""

    read_kv_heads: tuple[tuple[int, ...], ...]
    self_heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    ratios: tuple[tuple[float, ...], ...]


def importance_order(statistics: Statistics | None, sizes: Sizes) -> ImportanceOrder:
    """The order from statistics; without them all units are alike and come in ascending order.

    Raises YopoError for statistics of a model of other sizes.
    """
    layers, heads = sizes.num_hidden_layers, sizes.num_attention_heads
    if statistics is None:
        in_order = [tuple(range(count)) for count in (sizes.num_key_value_heads, heads, sizes.intermediate_size)]
        kv_heads, query_heads, neurons = ((order,) * layers for order in in_order)
        return ImportanceOrder(kv_heads, query_heads, neurons, ((0.0,) * heads,) * layers)
    measured = (*statistics.read.shape, statistics.neurons.shape[1])
    if measured != (layers, heads, sizes.intermediate_size):
        names = "layers, heads and neurons"
        raise YopoError(
            f"The statistics are of a model with {measured} {names}, this one has {(layers, heads, sizes.intermediate_size)}.",
            "Pass the file that this model's calibration wrote.",
        )
    return ImportanceOrder(
        _descending(statistics.read.unflatten(1, (-1, sizes.group)).sum(-1).tolist()),
        _descending(statistics.self_.tolist()),
        _descending(statistics.neurons.tolist()),
        tuple(map(tuple, statistics.ratio_quantile().tolist())),
    )


def layer_scores(statistics: Statistics | None, sizes: Sizes) -> tuple[LayerScores, ...]:
    """What each layer adds; without statistics all are alike."""
    if statistics is None:
        return (LayerScores(0.0, 0.0, 0.0),) * sizes.num_hidden_layers
    sums = (statistics.read.sum(1), statistics.self_.sum(1), statistics.neurons.square().sum(1).sqrt())
    return tuple(LayerScores(*values) for values in zip(*(one.tolist() for one in sums), strict=True))


def _descending(scores: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], ...]:
    """The places of each layer's scores, highest first, the lower place on ties."""
    return tuple(tuple(sorted(range(len(layer)), key=lambda place: -layer[place])) for layer in scores)
