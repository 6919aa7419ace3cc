"""How fast an export is: its prefill and decoding beside the dense graph of the same weights, and beside the PyTorch runtime, in turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...bench.clock import Timing, in_turns
from ...runtime.outputs import CACHE
from ...runtime.plan import Grid
from ...runtime.token_split import Image
from .prompts import Prompts, arrange
from .session import Exported, Turn, advance, first_call

STD = 0.02
TOKEN = 5


@dataclass(frozen=True)
class TimedInputs:
    """A batch of equal prompts around one picture, with these `grids`, of random features: `embeds` `[batch, length, hidden]`."""

    prompts: Prompts
    embeds: Any
    visual: Any
    grids: tuple[Grid, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """The picture of each sample."""
        firsts = [sum(grid.tokens for grid in self.grids[:place]) for place in range(len(self.grids))]
        return tuple(Image(sample, *one) for sample in range(len(self.embeds)) for one in zip(firsts, self.grids, strict=True))


@dataclass(frozen=True)
class TimedSide:
    """One model in one runtime: `prefill()` gives a state, `step(state)` reads one more token and gives the next."""

    prefill: Callable[[], Any]
    step: Callable[[Any], Any]


@dataclass(frozen=True)
class Times:
    """Timings by side; those of `decode` are of one token."""

    prefill: Mapping[str, Timing]
    decode: Mapping[str, Timing]


def given(grids: tuple[Grid, ...], text_tokens: int, batch: int, hidden: int, multimodal: bool, seed: int = 0) -> TimedInputs:
    """Half of the text before the picture, half after it."""
    tokens = sum(grid.tokens for grid in grids)
    generator = np.random.default_rng(seed)
    length = tokens + text_tokens
    visual = np.zeros((batch, length), bool)
    visual[:, text_tokens // 2 : text_tokens // 2 + tokens] = True
    ones = np.ones((batch, length), np.int64)
    embeds = generator.standard_normal((batch, length, hidden), np.float32) * np.float32(STD)
    return TimedInputs(arrange(ones, ones, visual, grids[-1], multimodal, tokens), embeds, visual, grids)


def export_side(exported: Exported, what: TimedInputs, *, dense: bool = False) -> TimedSide:
    """An export, or with `dense` its weights with the plan switched off."""

    def as_asked(call: Callable[[], Turn]) -> Turn:
        if not dense:
            return call()
        with exported.dense():
            return call()

    kind = np.float16 if exported.manifest.dtype == "float16" else np.float32
    # Features that are added after the first layers stand behind a row's own; zeros take as long.
    behind = exported.session(exported.manifest.embedding).get_outputs()[0].shape[-1] - what.embeds.shape[-1]
    embeds = np.pad(what.embeds.astype(kind), ((0, 0), (0, 0), (0, behind)))
    tokens = np.full((len(embeds), 1), TOKEN)
    return TimedSide(
        lambda: as_asked(lambda: first_call(exported, what.prompts, embeds)),
        lambda state: as_asked(lambda: advance(exported, state, tokens)),
    )


def torch_side(model: Any, what: TimedInputs, *, dense: bool = False) -> TimedSide:
    """The PyTorch runtime's language model and head on the same rows."""
    text_model, kind = model.get_decoder(), model.dtype
    embeds, visual = torch.from_numpy(what.embeds).to(kind), torch.from_numpy(what.visual)
    positions = torch.from_numpy(what.prompts.positions)
    tokens = torch.full((len(embeds), 1), TOKEN)

    def run(**arguments: Any) -> Any:
        with torch.inference_mode():
            if not dense:
                return _headed(model, text_model(use_cache=True, **arguments))
            with text_model.dense():
                return _headed(model, text_model(use_cache=True, **arguments))

    def step(state: Any) -> Any:
        return run(input_ids=tokens, **{CACHE: state})

    picture = {} if dense else {"visual_mask": visual, "images": lambda *_: what.images}
    return TimedSide(lambda: run(inputs_embeds=embeds, position_ids=positions, **picture), step)


def _headed(model: Any, found: Any) -> Any:
    """The cache, after the last token's logits were computed."""
    model.lm_head(found.last_hidden_state[:, -1:])
    return found[CACHE]


def times(sides: Mapping[str, TimedSide], reference: str, rounds: int, steps: int) -> Times:
    """Every side once a round, against the reference side; then one token after another on growing caches."""
    device = torch.device("cpu")
    states = {name: side.prefill() for name, side in sides.items()}
    prefill = in_turns({name: side.prefill for name, side in sides.items()}, reference, rounds, device, warmup=0)

    def stepping(name: str) -> Callable[[], None]:
        def step() -> None:
            states[name] = sides[name].step(states[name])

        return step

    decode = in_turns({name: stepping(name) for name in sides}, reference, steps, device) if steps else {}
    return Times(prefill, decode)
