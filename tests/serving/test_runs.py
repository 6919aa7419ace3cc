"""Runs of text pose as requests, and channels hide keys: checked by hand."""

import pytest
import torch
from support.engine import common

from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes
from converters.serving.padded import HIDDEN, channels
from converters.serving.runs import text_runs
from converters.serving.work import layer_works


def test_runs_of_two_requests() -> None:
    """The first has tokens 2 to 8 in this step, of which 4 and 5 are visual; the second its first three, the last of them visual."""
    given = common([(2, 8), (0, 3)], blocks=2)
    visual = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0, 1]).bool()
    found = text_runs(given, visual)
    assert found.query_start_loc.tolist() == [0, 2, 4, 6]
    assert found.seq_lens.tolist() == [4, 8, 2]
    assert found.seq_lens_cpu_upper_bound.tolist() == [4, 8, 2]
    assert (found.num_reqs, found.num_actual_tokens, found.max_query_len) == (3, 6, 2)
    assert found.block_table_tensor.tolist() == [[3, 2], [3, 2], [1, 0]]
    assert found.slot_mapping.tolist() == [14, 15, 10, 11, 4, 5]


def test_a_step_without_text() -> None:
    with pytest.raises(ValueError, match="no text"):
        text_runs(common([(0, 2)]), torch.tensor([True, True]))


def test_channels_of_a_layer() -> None:
    """KV head 1 is read by head 2 alone, KV head 0 by none: its keys are hidden from both of its query heads."""
    sizes = Sizes(8, 6, 2, 4, 2, 2)
    plan = Plan(sizes, (LayerPlan((2,), (), ()), LayerPlan((0,), (), ())), (Grid(2, 2),))
    work = layer_works(plan)[0]
    query, key = channels(work, 3)
    assert work.reads == (True, False, False, False)
    assert query.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert key.tolist() == [[0, HIDDEN, 0], [HIDDEN, 0, 0]]
