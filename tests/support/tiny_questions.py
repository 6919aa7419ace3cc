"""Questions for a tiny LLaVA."""

from typing import Any

from converters.runtime.plan import Grid
from support.tiny import tiny_inputs

ANSWER_TOKENS = 4
GRIDS = (Grid(4, 4),)


def questions(config: Any) -> list[Any]:
    return [tiny_inputs(config, (3, 5), (1, 2), seed=seed) for seed in range(2)]
