"""What visual tokens do in each layer of a served model, heads and neurons in the file's order: all that serving needs of a plan."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..runtime.layout import LayerLayout, Range, layouts
from ..runtime.plan import Grid, Plan, normalise
from ..runtime.stride import shown_tokens

__all__ = ["LayerWork", "Range", "layer_works", "shown", "strides"]


@dataclass(frozen=True)
class LayerWork:
    """One layer. Query heads and KV heads are numbered as in the file.

    `parts` are the KV heads that have K and V of visual tokens, and of which; those after the last part have none. `reads` tells for
    each query head whether text sees visual tokens in it, `computing` are the query heads that visual tokens compute, `neurons` the
    leading FFN neurons that they go through. `refitted`: K and V of visual tokens have projections of their own in the file, through
    `rank` dimensions where that is not None, and then so have their queries.
    """

    query_heads: int
    kv_heads: int
    intermediate_size: int
    parts: tuple[Range, ...]
    reads: tuple[bool, ...]
    computing: tuple[int, ...]
    neurons: int
    refitted: bool = False
    rank: int | None = None

    @property
    def visual_kv_heads(self) -> int:
        """Leading KV heads that have K and V of visual tokens."""
        return self.parts[-1].last if self.parts else 0

    @property
    def computes_all(self) -> bool:
        return len(self.computing) == self.query_heads

    @property
    def dense_attention(self) -> bool:
        """Whether visual rows go through the same projections as text rows: one product of both."""
        return self.computes_all and not self.refitted

    @property
    def all_neurons(self) -> bool:
        return self.neurons == self.intermediate_size

    @property
    def hides(self) -> bool:
        """Whether some visual token is hidden from text in some head."""
        return not all(self.reads) or self.visual_kv_heads < self.kv_heads or any(part.stride > 1 for part in self.parts)

    def read_kv_heads(self) -> tuple[tuple[bool, bool], ...]:
        """For each KV head whether text reads visual tokens in any, and in all, of its query heads."""
        group = self.query_heads // self.kv_heads
        groups = [self.reads[first : first + group] for first in range(0, self.query_heads, group)]
        return tuple((any(reads), all(reads)) for reads in groups)


def layer_works(plan: Plan, refitted: Iterable[int] = ()) -> tuple[LayerWork, ...]:
    """The work of every layer of a plan; `refitted` are the layers that have projections for visual tokens in the file."""
    plan, refitted = normalise(plan), frozenset(refitted)
    return tuple(_layer_work(layout, plan, index in refitted) for index, layout in enumerate(layouts(plan)))


def _layer_work(layout: LayerLayout, plan: Plan, refitted: bool) -> LayerWork:
    return LayerWork(
        query_heads=plan.sizes.num_attention_heads,
        kv_heads=plan.sizes.num_key_value_heads,
        intermediate_size=plan.sizes.intermediate_size,
        parts=layout.visual_ranges,
        reads=layout.reads,
        computing=layout.computing,
        neurons=layout.neurons,
        refitted=refitted,
        rank=layout.kv_rank,
    )


def strides(works: Iterable[LayerWork]) -> tuple[int, ...]:
    """The strides above 1 that some layer reads with, rising."""
    return tuple(sorted({part.stride for work in works for part in work.parts if part.stride > 1}))


def shown(grid: Grid, stride: int) -> tuple[bool, ...]:
    """Whether a stride shows each token of a grid, in the order of its tokens."""
    some = set(shown_tokens(grid, stride))
    return tuple(token in some for token in range(grid.tokens))
