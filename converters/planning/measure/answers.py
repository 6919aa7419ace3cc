"""The dense model's answers, which are what a pruned model is compared with, teacher-forced, wherever a plan is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ...calibration.batch import on_model
from ...errors import YopoError
from ...families import Family, converted_family, family_of

MAX_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Answered:
    """A batch of questions with the dense model's greedy answers appended.

    `embeds` `[batch, length, hidden]` are the language model's input rows and `positions` what it was given with them; `mask` and
    `visual` `[batch, length]` tell tokens from padding and visual ones from text. `predicts` `[batch, length]` marks the rows
    whose next token is one of the answer's, the end token included; `dense` `[answer tokens, hidden]` are the dense model's final
    (normalised) rows there, in order. `deepstack` `[visual tokens, hidden]` each are what the model adds to visual rows after its first
    layers; `videos` `[batch, length]` marks the visual tokens that are of videos, for models whose rows do not tell (None: none is).
    """

    embeds: Tensor
    positions: Tensor | None
    mask: Tensor
    visual: Tensor
    predicts: Tensor
    dense: Tensor
    deepstack: tuple[Tensor, ...] = ()
    videos: Tensor | None = None


@dataclass(frozen=True)
class Continued:
    """A batch of questions with the dense model's greedy answers appended: the model's `inputs`, and which tokens are answers.

    `new` `[batch, longest answer]` tells the last columns' answer tokens, the end token included, from padding; `mask` and `visual`
    `[batch, length]` tell tokens from padding and visual ones from text.
    """

    inputs: dict[str, Any]
    new: Tensor
    mask: Tensor
    visual: Tensor

    @property
    def predicts(self) -> Tensor:
        """`[batch, length]`: the rows whose next token is one of the answer's."""
        predicts = torch.zeros_like(self.mask)
        predicts[:, -self.new.shape[1] - 1 : -1] = self.new
        return predicts


def continued(model: Any, batch: Any, max_new_tokens: int = MAX_ANSWER_TOKENS) -> Continued:
    """Answer a left-padded batch of questions (processor outputs that end where the answer begins) with the dense model.

    The model may be a converted one whose plan is switched off. Raises YopoError for a question without an image.
    """
    placeholders = placeholders_of(model)
    given = on_model(batch, model)
    if not isin(given["input_ids"], placeholders).any(1).all():
        raise YopoError("A calibration sample has no image.", "Each needs an image and a question.")
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    with torch.inference_mode():
        whole = model.generate(**given, generation_config=_greedy(model, max_new_tokens, placeholders))
        prompt = given["input_ids"].shape[1]
        new = _until_the_end(whole[:, prompt:], _ends(model))
    mask = torch.cat([given["attention_mask"].bool(), new], 1)
    return Continued(_extended(given, whole, mask, prompt), new, mask, mask & isin(whole, placeholders))


def answered(model: Any, batch: Any, max_new_tokens: int = MAX_ANSWER_TOKENS) -> Answered:
    """The same, as the language model sees it, with the rows that predict the answers."""
    answered_batch = continued(model, batch, max_new_tokens)
    with torch.inference_mode():
        rows, inputs = language_model_pass(model, answered_batch.inputs)
    embeds, predicts = inputs["inputs_embeds"], answered_batch.predicts
    tokens = answered_batch.mask, answered_batch.visual, predicts
    deepstack, videos = tuple(inputs.get("deepstack_visual_embeds") or ()), videos_of(model, answered_batch.inputs["input_ids"])
    return Answered(embeds, inputs.get("position_ids"), *tokens, rows[predicts], deepstack, videos)


def videos_of(model: Any, ids: Tensor) -> Tensor | None:
    """Which tokens are of videos, None for a model that sees none."""
    token = getattr(model.config, "video_token_id", None)
    return None if token is None else ids == token


def placeholders_of(model: Any) -> tuple[int, ...]:
    """The tokens of pictures and videos of a model, dense or converted."""
    config = model.config.to_dict()
    family: Family = converted_family(config) or family_of(config)
    return family.placeholders(config)


def isin(ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """Where the ids are among these tokens."""
    return torch.isin(ids, torch.tensor(tokens, device=ids.device))


def _greedy(model: Any, max_new_tokens: int, placeholders: Sequence[int]) -> GenerationConfig:
    """Greedy decoding that never writes the placeholder of an image, which would be taken for one."""
    ends = _ends(model)
    padding = model.generation_config.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=padding if padding is not None else next(iter(ends), 0),
        suppress_tokens=list(placeholders),
    )


def _ends(model: Any) -> list[int]:
    tokens = model.generation_config.eos_token_id
    return list(tokens) if isinstance(tokens, list) else [] if tokens is None else [tokens]


def _until_the_end(tokens: Tensor, ends: list[int]) -> Tensor:
    """Bool [batch, tokens]: those up to the first end token, which counts; all where there is none."""
    ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
    return (ended.cumsum(1) - ended.long()) == 0


def _extended(given: dict[str, Any], whole: Tensor, mask: Tensor, prompt: int) -> dict[str, Any]:
    """The inputs of the questions with their answers; other values that go by token are zero for those of the answer."""
    longer = {
        name: torch.nn.functional.pad(value, (0, whole.shape[1] - prompt))
        for name, value in given.items()
        if value.shape == given["input_ids"].shape
    }
    return {**given, **longer, "input_ids": whole, "attention_mask": mask.long()}


def language_model_pass(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Final rows `[batch, length, hidden]` of a dense forward pass, and what the language model was called with."""
    seen: dict[str, Any] = {}

    def look(_: Any, __: Any, keywords: dict[str, Any]) -> None:
        seen.update(keywords)

    handle = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    try:
        rows: Tensor = model.model(**inputs, use_cache=False).last_hidden_state
    finally:
        handle.remove()
    return rows, seen
