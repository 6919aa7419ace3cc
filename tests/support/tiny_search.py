"""A search on a tiny model, made once."""

from functools import cache
from typing import Any

from converters.calibration.statistics import Statistics, calibrate
from converters.planning.frontier import Frontier
from converters.planning.search.search import Effort, search
from support.tiny import tiny_inputs, tiny_llava

BUDGETS = (0.5, 0.2, 0.06)
ANSWER_TOKENS = 3
EFFORT = Effort(80.0, grain=0.05)


@cache
def subject(kv_heads: int = 4) -> tuple[Any, Any, tuple[Any, ...], Statistics]:
    model, config = tiny_llava(layers=3, heads=4, kv_heads=kv_heads)
    batches = (tiny_inputs(config, (3, 5), (1, 4), (2, 2)),)
    return model, config, batches, calibrate(model, batches, fingerprint="tiny")


@cache
def searched(kv_heads: int = 4) -> Frontier:
    model, _, batches, statistics = subject(kv_heads)
    return search(model, batches, statistics, BUDGETS, max_answer_tokens=ANSWER_TOKENS, effort=EFFORT)
