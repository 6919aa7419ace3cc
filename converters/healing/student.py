"""The pruned model as it is trained: what enters the projector goes in, the divergence from the dense model's answers comes out."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..planning.measure.answers import isin, videos_of
from .answers import TeacherAnswer

IGNORED = -100  # a row whose next token is not one of the answer's


def collate(records: Sequence[TeacherAnswer], padding: int = 0) -> dict[str, Tensor]:
    """A left-padded batch. `labels` `[batch, length]` are the answers' tokens at the rows that predict them.

    `seen`, `dense`, `ends` and `deepstack` of all samples follow each other.
    """
    width = max(len(record.ids) for record in records)
    batch = {
        "input_ids": torch.stack([_left(record.ids, width, padding) for record in records]),
        "attention_mask": torch.stack([_left(torch.ones_like(record.ids), width, 0) for record in records]),
        "labels": torch.stack([_left(_labels(record), width, IGNORED) for record in records]),
        "seen": torch.cat([record.seen for record in records]),
        "dense": torch.cat([record.dense for record in records]),
    }
    if records[0].ends is not None:
        batch["ends"] = torch.cat([record.ends for record in records if record.ends is not None])
    if records[0].deepstack is not None:
        batch["deepstack"] = torch.cat([record.deepstack for record in records if record.deepstack is not None], 1)
    if records[0].positions is not None:
        # Multimodal positions tell pictures apart by where they begin, so padding repeats nobody's.
        batch["position_ids"] = torch.stack([_left(record.positions, width, 1) for record in records if record.positions is not None], -2)
    return batch


def _left(values: Tensor, width: int, padding: int) -> Tensor:
    return nn.functional.pad(values, (width - values.shape[-1], 0), value=padding)


def _labels(record: TeacherAnswer) -> Tensor:
    labels = torch.full_like(record.ids, IGNORED)
    labels[-1 - len(record.dense) : -1] = record.ids[-len(record.dense) :]
    return labels


def answer_rows(model: Any, placeholders: Sequence[int], batch: dict[str, Tensor]) -> Tensor:
    """The language model's final rows `[answer tokens, hidden]` that predict the answers of a collated batch, in order."""
    language_model = model.get_decoder()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    visual = isin(ids, placeholders) & mask.bool()
    embeds = language_model.embed_tokens(ids)
    projected = model.get_submodule(model.projector)(batch["seen"].flatten(0, -2).to(embeds.dtype)).to(embeds.dtype)
    if "ends" in batch:
        projected = model.model.image_newline.to(projected).where(batch["ends"][:, None], projected)
    deepstack = [part.to(embeds.dtype) for part in batch["deepstack"]] if "deepstack" in batch else None
    rows: Tensor = language_model(
        inputs_embeds=embeds.masked_scatter(visual[..., None], projected),
        attention_mask=mask,
        position_ids=batch.get("position_ids"),
        visual_mask=visual,
        images=partial(model.model.images, videos=videos_of(model, ids)),
        visual_pos_masks=visual,
        deepstack_visual_embeds=deepstack,
        use_cache=False,
    ).last_hidden_state
    return rows[batch["labels"] != IGNORED]


class Student(nn.Module):
    """A converted model whose `tuned` part learns; the rest is no submodule: it is neither moved, saved nor trained."""

    accepts_loss_kwargs = True

    def __init__(self, model: Any, tuned: nn.Module, placeholders: Sequence[int]) -> None:
        super().__init__()
        self.tuned = tuned
        self.placeholders = placeholders
        self._frozen = [model]  # in a list, which modules do not look into

    @property
    def model(self) -> Any:
        return self._frozen[0]

    def forward(self, labels: Tensor, dense: Tensor, num_items_in_batch: Tensor | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """`loss`: KL(dense || pruned) in nats, summed over the answers' tokens, over `num_items_in_batch` (default: their number).

        `divergence` and `tokens` `[batch]` are each sample's sum and count. The rest of the batch is as `collate` makes it.
        """
        rows = answer_rows(self.model, self.placeholders, batch | {"labels": labels})
        pruned, wanted = (self.model.lm_head(part).float().log_softmax(-1) for part in (rows, dense.to(rows.dtype)))
        by_token = (wanted.exp() * (wanted - pruned)).sum(-1)
        answers = labels != IGNORED
        divergence = by_token.new_zeros(len(labels)).index_add(0, answers.nonzero()[:, 0], by_token)
        tokens = answers.sum(1)
        count = tokens.sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": by_token.sum() / count, "divergence": divergence.detach(), "tokens": tokens}
