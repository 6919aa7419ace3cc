"""An export held against PyTorch: logits of the first answer's token, and greedy tokens."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import YopoError

# Largest difference of a logit over the largest logit, by what the graphs compute in; rounded weights are another model.
TOLERANCES = {"float32": 1e-4, "float16": 3e-2}
TOKENS = 20


class Runnable(Protocol):
    """An export that answers padded batches as a processor gives them."""

    @property
    def dtype(self) -> str:
        """What its graphs compute in."""

    @property
    def bits(self) -> int | None:
        """Of its quantised weights."""

    def first_logits(self, inputs: Mapping[str, Any]) -> Any:
        """`[batch, vocabulary]`"""

    def generate(self, inputs: Mapping[str, Any], max_new_tokens: int, *, stop: bool = True) -> Any:
        """Greedy tokens `[batch, new]`."""

    def release(self) -> None:
        """Forget the sessions."""


def compare(exported: Runnable, model: Any, prompts: Mapping[str, Any], tokens: int = TOKENS) -> dict[str, Any]:
    """Answers of an export and of the PyTorch runtime to batches of prompts (processor outputs), by the batches' names.

    Returns for each the largest difference of a logit, the largest logit, and how many of the samples' greedy tokens are equal. Raises
    YopoError where unquantised logits differ by more than rounding.
    """
    found = {name: _compared(exported, model, inputs, tokens) for name, inputs in prompts.items()}
    exported.release()
    limit = TOLERANCES[exported.dtype]
    for name, result in found.items():
        share = result["largest_difference"] / max(result["largest_logit"], 1.0)
        if exported.bits is None and not share <= limit:  # so that NaN fails
            raise YopoError(
                f"Logits of {name} differ from PyTorch's by {share:.1e} of the largest, more than {limit:.0e}.", "Please report this model."
            )
    return {"tokens": tokens, "reference": str(model.dtype).removeprefix("torch."), "prompts": found}


def _compared(exported: Runnable, model: Any, inputs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    expected, words = _expected(model, inputs, tokens)
    logits = exported.first_logits(inputs)
    produced = exported.generate(inputs, tokens, stop=False)
    return {
        "largest_difference": float(np.abs(logits - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "samples": len(words),
        "equal_tokens": int((produced == words).sum()),
        "all_tokens": int(words.size),
    }


def _expected(model: Any, inputs: Mapping[str, Any], tokens: int) -> tuple[Any, Any]:
    """Logits `[batch, vocabulary]` and greedy tokens `[batch, tokens]`, which no end stops."""
    from transformers import GenerationConfig

    kind = model.dtype
    given = {name: value.to(kind) if torch.is_tensor(value) and value.is_floating_point() else value for name, value in inputs.items()}
    greedy = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)  # None would be the model's own
    with torch.inference_mode():
        logits = model(**given, logits_to_keep=1).logits[:, -1].float().numpy()
        words = model.generate(**given, generation_config=greedy)[:, given["input_ids"].shape[1] :].numpy()
    return logits, words
