"""A recorder that sits in the attention and the FFN of a dense model and sums what every head and neuron does.

It takes the place of the attention function, so it works for every model that transformers' attention interface serves. Queries
go through in chunks and are reduced at once: a chunk of one layer's attention map is the most that exists at any time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ..families import Layer
from ..runtime.offloaded import at_hand
from ..runtime.plan import Sizes
from .batch import TokenMasks
from .histogram import BINS, bins_of

IMPLEMENTATION = "yopo_recorder"
CHUNK_ELEMENTS = 2**26  # attention probabilities at a time, over batch and heads: 256 MB in float32
CHUNK_ROWS = 1024  # rows of FFN activations at a time


class Recorder:
    """Sums over all batches that pass, on the CPU in float64; the names are those of `Statistics`."""

    def __init__(self, layers: nn.ModuleList, names: Layer, sizes: Sizes, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        heads = (sizes.num_hidden_layers, sizes.num_attention_heads)
        self.sizes = sizes
        self.chunk_elements = chunk_elements
        self.outputs: list[Any] = [layer.get_submodule(names.output) for layer in layers]
        self.downs: list[Any] = [layer.get_submodule(names.down) for layer in layers]
        self.grams: dict[int, Tensor] = {}
        self.ratios = torch.zeros(*heads, BINS, dtype=torch.int32)
        self.read_sum = torch.zeros(heads, dtype=torch.float64)
        self.self_sum = torch.zeros(heads, dtype=torch.float64)
        self._squares = torch.zeros(sizes.num_hidden_layers, sizes.intermediate_size, dtype=torch.float64)
        self.rows: TokenMasks

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        """Attention [batch, heads, tokens, head_dim] -> [batch, tokens, heads, head_dim], recorded on the way.

        `mask`: bool [batch, 1, tokens, tokens], True = takes part, None = causal.
        """
        batch, heads, tokens, head_dim = query.shape
        rows = self.rows
        # One product gives the output, its part from visual keys, and the attention on visual and on text keys.
        visual, text = (part[:, None, :, None].expand(-1, value.shape[1], -1, -1).float() for part in (rows.visual, rows.text))
        values = torch.cat([value.float(), value.float() * visual, visual, text], dim=-1)
        gram = self._gram(module.layer_idx)
        sums = torch.zeros(4, batch, heads, device=query.device)
        outputs, places = [], torch.arange(tokens, device=query.device)
        for part in torch.split(places, max(1, self.chunk_elements // (batch * heads * tokens))):
            visible = mask[:, :, part] if mask is not None else part[:, None] >= places
            result = _attend(query[:, :, part], key, values, visible, scaling)
            output, read, masses = torch.split(result, [head_dim, head_dim, 2], dim=-1)
            reading, visual = (which[:, None, part].float() for which in (rows.reading, rows.visual))
            terms = (_norms(read, gram) * reading, _norms(output, gram) * visual, masses[..., 0] * reading, masses[..., 1] * reading)
            sums += torch.stack(terms).sum(-1)
            outputs.append(output.to(query.dtype))
        self._add(module.layer_idx, sums.cpu().double())
        return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None

    def _add(self, layer: int, sums: Tensor) -> None:
        read, written, on_visual, on_text = sums  # [batch, heads] each
        self.read_sum[layer] += read.sum(0)
        self.self_sum[layer] += written.sum(0)
        bins = bins_of(on_visual / on_text)
        self.ratios[layer].scatter_add_(1, bins.T, torch.ones_like(bins.T, dtype=torch.int32))

    def _gram(self, layer: int) -> Tensor:
        """`W_h^T W_h` of each head's columns of o_proj, float32 [heads, head_dim, head_dim]: norms without [rows, hidden]."""
        if layer not in self.grams:
            with at_hand(self.outputs[layer]):
                weight = self.outputs[layer].weight.detach().float()
            columns = weight.view(weight.shape[0], self.sizes.num_attention_heads, self.sizes.head_dim)
            self.grams[layer] = torch.einsum("xhd,xhe->hde", columns, columns)
        return self.grams[layer]

    def activations(self, layer: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        """A hook before down_proj of this layer that sums the squares of activations [batch, tokens, intermediate]."""

        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            for rows in torch.split(inputs[0][self.rows.visual], CHUNK_ROWS):
                self._squares[layer] += rows.float().square().sum(0).cpu().double()

        return hook

    @property
    def neuron_sum(self) -> Tensor:
        """Summed squares of activation * ||down_proj column||, float64 [layers, intermediate]."""
        columns = []
        for down in self.downs:
            with at_hand(down):
                columns.append(down.weight.detach().float().norm(dim=0).cpu().double())
        return self._squares * torch.stack(columns).square()

    @contextmanager
    def attached(self, language_model: Any) -> Iterator[None]:
        """Within, the language model's attention goes through this recorder; afterwards all is as before, errors or not."""
        before = language_model.config._attn_implementation
        AttentionInterface.register(IMPLEMENTATION, self.attention)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        hooks = [down.register_forward_pre_hook(self.activations(layer)) for layer, down in enumerate(self.downs)]
        try:
            language_model.set_attn_implementation(IMPLEMENTATION)
            yield
        finally:
            language_model.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()


def _attend(query: Tensor, key: Tensor, values: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """softmax(q k^T) values in float32: [batch, heads, rows, values' width]; KV heads are shared by groups of query heads."""
    batch, heads, rows, head_dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, head_dim).float()
    scores = (grouped @ key.float().transpose(2, 3) * scaling).view(batch, heads, rows, -1)
    # The smallest number, not minus infinity: a padded row sees nothing and must not become NaN.
    probabilities = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    return (probabilities.view(batch, key.shape[1], -1, key.shape[2]) @ values).view(batch, heads, rows, -1)


def _norms(rows: Tensor, gram: Tensor) -> Tensor:
    """|| W_h x || of rows [batch, heads, rows, head_dim] through each head's Gram matrix: [batch, heads, rows]."""
    return ((rows @ gram) * rows).sum(-1).clamp_min(0).sqrt()
