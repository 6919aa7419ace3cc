"""Answers of a loaded model: greedy, the same for the same inputs."""

from collections.abc import Sequence
from typing import Any

from ..export.loading import LoadedExport
from ..loading import Loaded


def generate(loaded: Loaded, inputs: Any, max_new_tokens: int, streamer: Any = None) -> list[str]:
    """The model's answers to a batch of processor outputs, without the prompts."""
    if isinstance(loaded, LoadedExport):
        return _decoded(loaded, loaded.new_tokens(inputs, max_new_tokens))
    import torch

    on_device = inputs.to(loaded.device, dtype=loaded.model.dtype)
    with torch.inference_mode():
        produced = loaded.model.generate(**on_device, generation_config=_greedy(loaded.model, max_new_tokens), streamer=streamer)
    return _decoded(loaded, produced[:, on_device["input_ids"].shape[1] :])


def _decoded(loaded: Loaded, new: Any) -> list[str]:
    answers: Sequence[str] = loaded.processor.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def _greedy(model: Any, max_new_tokens: int) -> Any:
    """The model's own special tokens, without sampling or beams that its defaults may ask for."""
    from transformers import GenerationConfig

    defaults = model.generation_config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        bos_token_id=defaults.bos_token_id,
        eos_token_id=defaults.eos_token_id,
        pad_token_id=defaults.pad_token_id if defaults.pad_token_id is not None else _first(defaults.eos_token_id),
    )


def _first(token: Any) -> Any:
    return token[0] if isinstance(token, list) else token
