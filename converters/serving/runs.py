"""Runs of text in a step of the engine, each posing as a request of its own."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def text_runs(common: Any, visual: Tensor) -> Any:
    """vLLM's common metadata of a step's text rows alone, from that of all rows; `visual` `[rows]` marks visual rows, on the CPU.

    Every unbroken run of text in a request poses as a request of its own, which ends where the run ends: causal order stays exact. Raises
    ValueError where there is no text.
    """
    starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
    runs = [run for request, (first, last) in enumerate(pairwise(starts)) for run in _runs(request, visual[first:last])]
    if not runs:
        raise ValueError("There is no text in this step.")
    device = common.seq_lens.device
    request, length, after = torch.tensor(runs, dtype=torch.int32).unbind(1)
    start = nn.functional.pad(length.cumsum(0), (1, 0)).to(torch.int32)
    rows = (~visual).nonzero()[:, 0].to(device)
    index = request.to(device)
    seen = common.seq_lens[index] - after.to(device, common.seq_lens.dtype)
    bound = common.seq_lens_cpu_upper_bound
    return replace(
        common,
        query_start_loc=start.to(device),
        query_start_loc_cpu=start,
        seq_lens=seen,
        num_reqs=len(runs),
        num_actual_tokens=int(start[-1]),
        max_query_len=int(length.max()),
        max_seq_len=common.max_seq_len,
        block_table_tensor=common.block_table_tensor[index],
        slot_mapping=common.slot_mapping[rows],
        positions=None,
        is_prefilling=None,
        req_idx=None if common.req_idx is None else common.req_idx[request.numpy()],
        logits_indices_padded=None,
        num_logits_indices=None,
        seq_lens_cpu_upper_bound=None if bound is None else bound[request] - after,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


def _runs(request: int, visual: Tensor) -> Sequence[tuple[int, int, int]]:
    """Runs of text among one request's rows: the request, how many rows, how many rows of the request come after."""
    rows = len(visual)
    edges = [0, *((visual[1:] != visual[:-1]).nonzero()[:, 0] + 1).tolist(), rows]
    return [(request, last - first, rows - last) for first, last in pairwise(edges) if first < last and not visual[first]]
