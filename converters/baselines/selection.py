"""Which visual tokens a token pruner keeps, as pure functions of tensors of one sample or picture.

Every function returns indices in ascending order, so that tokens stay in the order of the picture.
"""

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-6
PIVOTS = 4  # DART's, of each kind


def most_attended(attention: Tensor, kept: int) -> Tensor:
    """The `kept` tokens with the most attention `[heads, queries, tokens]`, averaged over heads and queries."""
    return attention.mean((0, 1)).topk(kept).indices.sort().values


def attention_of(queries: Tensor, keys: Tensor, scale: float, visible: Tensor | None = None) -> Tensor:
    """Softmax attention `[heads, queries, keys]` of a few queries `[heads, queries, head_dim]` to keys `[KV heads, keys, head_dim]`.

    `visible` `[queries, keys]` tells who sees whom, None for everything.
    """
    keys = keys.repeat_interleave(queries.shape[0] // keys.shape[0], 0)
    scores = queries @ keys.transpose(1, 2) * scale
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return functional.softmax(scores, -1, dtype=torch.float32)


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """SparseVLM's text raters: indices of the text tokens `[text, hidden]` nearer to the picture `[tokens, hidden]` than the average."""
    relevance = functional.softmax((visual @ text.T).float(), -1).mean(0)
    found = (relevance > relevance.mean()).nonzero()[:, 0]
    return found if len(found) else torch.arange(len(text), device=text.device)  # all alike: no one stands out


def most_diverse(features: Tensor, kept: int) -> Tensor:
    """DivPrune: greedy max-min diversity by cosine distance of features `[tokens, hidden]`.

    The first is the token whose nearest neighbour is farthest, each next the one farthest from those chosen.
    """
    unit = functional.normalize(features.float(), dim=-1)
    distances = 1 - unit @ unit.T
    nearest = distances.topk(2, 0, largest=False).values[1] if len(features) > 1 else distances[0]
    chosen = torch.empty(kept, dtype=torch.long, device=features.device)
    chosen[0] = nearest.argmax()
    nearest = distances[chosen[0]].clone()
    for place in range(1, kept):
        nearest[chosen[place - 1]] = -torch.inf  # a token is chosen once, whatever rounding says of its distance to itself
        chosen[place] = nearest.argmax()
        torch.minimum(nearest, distances[chosen[place]], out=nearest)
    return chosen.sort().values


def relevance(features: Tensor, words: Tensor) -> Tensor:
    """CDPruner's relevance of features `[tokens, hidden]` to what is asked, `words` `[text, hidden]`, within 0..1.

    Its code takes the negative of the mean cosine, and for models whose tower has no text encoder beside it the language model's own
    word embeddings.
    """
    cosine = functional.normalize(features.float(), dim=-1) @ functional.normalize(words.float(), dim=-1).T
    unlike = -cosine.mean(-1)
    return (unlike - unlike.min() + TINY) / (unlike.max() - unlike.min()).clamp(min=TINY)


def conditionally_diverse(features: Tensor, relevant: Tensor, kept: int) -> Tensor:
    """CDPruner (arXiv 2506.10967): the greedy subset with the largest determinant of the kernel relevance x cosine x relevance.

    `relevant` `[tokens]`. Each step takes the token that multiplies the determinant most (Chen et al., arXiv 1709.05135).
    """
    unit = functional.normalize(features.float(), dim=-1)
    kernel = relevant[:, None] * (unit @ unit.T) * relevant
    gains, factors = kernel.diagonal().clone(), kernel.new_zeros(kept, len(kernel))
    chosen = torch.empty(kept, dtype=torch.long, device=features.device)
    for place in range(kept):
        chosen[place] = best = gains.argmax()
        row = (kernel[best] - factors[:place, best] @ factors[:place]) / gains[best].clamp(min=TINY**2).sqrt()
        factors[place] = row
        gains -= row.square()
        gains[chosen[: place + 1]] = -torch.inf
    return chosen.sort().values


def most_covering(features: Tensor, saliency: Tensor, kept: int) -> Tensor:
    """SCOPE (arXiv 2510.24214): greedily the token with the largest saliency x coverage gained.

    A set covers a token by its largest cosine to it, at least 0; features `[tokens, width]`, `saliency` `[tokens]` is the attention of
    the class token.
    """
    unit = functional.normalize(features.float(), dim=-1)
    cosine = unit @ unit.T
    covered = cosine.new_zeros(len(cosine))
    chosen = torch.empty(kept, dtype=torch.long, device=features.device)
    for place in range(kept):
        gains = (cosine - covered[:, None]).clamp(min=0).sum(0) * saliency
        gains[chosen[:place]] = -torch.inf
        chosen[place] = best = gains.argmax()
        covered = torch.maximum(covered, cosine[best])
    return chosen.sort().values


def least_duplicate(states: Tensor, norms: Tensor, visual: Tensor, text: Tensor, kept: int) -> Tensor:
    """DART (arXiv 2502.11494): the visual tokens with the largest keys, and for each pivot those least like it; indices among `visual`.

    Pivots are PIVOTS of `visual` and PIVOTS of `text`, places in `states` `[length, hidden]`, by the L1 norm of their keys, `norms`
    `[length]`. Each takes an equal share of what is kept beside the visual ones, in the prompt's order (which the published code leaves
    open), what is left over the first ones.
    """
    first = norms[visual].topk(min(PIVOTS, kept, len(visual))).indices.sort().values
    pivots = torch.cat([visual[first], text[norms[text].topk(min(PIVOTS, len(text))).indices.sort().values]])
    free = torch.ones(len(visual), dtype=torch.bool, device=visual.device)
    free[first] = False
    each, over = divmod(kept - len(first), len(pivots))
    for number, pivot in enumerate(pivots):
        alike = functional.cosine_similarity(states[pivot].float(), states[visual].float(), dim=-1).masked_fill(~free, torch.inf)
        free[alike.topk(each + (number < over), largest=False).indices] = False
    return (~free).nonzero()[:, 0]


def dominant(attention: Tensor, kept: int) -> Tensor:
    """VisionZip's dominant tokens: those that the class token attends to most, `[heads, tokens]` summed over heads."""
    return attention.sum(0).topk(kept).indices.sort().values


def contextual(hidden: Tensor, keys: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """VisionZip's contextual tokens `[kept, hidden]`, merged from all that are not dominant, and the tokens they are merged around.

    Targets are taken at equal steps; every other token is averaged with those that have the same nearest target by cosine of their
    keys `[tokens, head_dim]`, and the average is added to the target.
    """
    step = max(1, len(hidden) // kept)
    targets = torch.arange(0, len(hidden), step, device=hidden.device)[:kept]
    others = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    others[targets] = False
    unit = functional.normalize(keys, dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(1)
    merged = torch.zeros_like(hidden[targets]).index_add_(0, nearest, hidden[others])
    counts = nearest.bincount(minlength=len(targets)).clamp(min=1)
    return hidden[targets] + merged / counts[:, None], targets


def recycle(hidden: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """SparseVLM's recycled tokens: averages `[clusters, hidden]` of density-peak clusters of `hidden`, and their centres.

    Density is exp(-mean squared distance to the nearest `clusters` tokens); a centre is dense and far from anything denser.
    """
    rows = hidden.float()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") / rows.shape[1] ** 0.5
    density = (-distances.topk(clusters, -1, largest=False).values.square().mean(-1)).exp()
    number = torch.arange(len(rows), device=rows.device)
    # Of equally dense tokens the earlier one counts as denser, so that only one has no denser token.
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (number[None] < number[:, None]))
    separation = distances.where(denser, distances.max()).min(-1).values
    centres = (separation * density).topk(clusters).indices
    nearest = distances[:, centres].argmin(1)
    nearest[centres] = torch.arange(clusters, device=rows.device)
    merged = torch.zeros(clusters, rows.shape[1], device=rows.device).index_add_(0, nearest, rows)
    counts = nearest.bincount(minlength=clusters)
    return (merged / counts[:, None]).to(hidden.dtype), centres


def pooled(features: Tensor, grid: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """Features `[rows * columns, hidden]` averaged over the cells of a coarser grid, `[coarse tokens, hidden]`."""
    picture = features.T.reshape(1, -1, *grid)
    return functional.adaptive_avg_pool2d(picture, coarse)[0].flatten(1).T


def at_random(tokens: int, kept: int, seed: int = 0) -> Tensor:
    """The same random tokens for the same seed."""
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[:kept].sort().values
