"""Running an export: sessions of its graphs, and greedy generation with a cache."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import YopoError
from ...runtime.switch import is_off, switched_off
from ..graph.slots import PAST, PAST_CODES, PRESENT, PRESENT_CODES
from . import manifest as manifests
from .manifest import Manifest, parse_grid
from .onnxruntimes import onnxruntime, session
from .prompts import Prompts, arrange, grid_by_tokens, grid_of

Array = Any
PIXELS = ("pixel_values", "pixel_values_videos")
SIZES = ("image_grid_thw", "video_grid_thw")


@dataclass
class Exported:
    """An export in a folder. Graphs are loaded when they are first needed."""

    folder: Path
    manifest: Manifest
    device: str = "cpu"
    allow_cpu: bool = False
    threads: int | None = None
    _sessions: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """What the graphs compute in."""
        return self.manifest.dtype

    @property
    def bits(self) -> int | None:
        """Of quantised weights."""
        return self.manifest.bits

    @property
    def has_plan(self) -> bool:
        return self.manifest.dense is not None

    def session(self, file: str) -> Any:
        """The session of a graph."""
        if file not in self._sessions:
            self._sessions[file] = session(self.folder / file, self.device, allow_cpu=self.allow_cpu, threads=self.threads)
        return self._sessions[file]

    @property
    def pruned(self) -> bool:
        """Whether the plan is obeyed, here and now."""
        return not is_off(self)

    def dense(self) -> AbstractContextManager[None]:
        """Within this context, and in this thread, the plan is switched off: the dense model of the same weights runs."""
        return switched_off(self)

    def release(self) -> None:
        """Forget the sessions and the memory of their weights."""
        self._sessions.clear()

    def path_report(self) -> str:
        """Which graphs run, and where, in one line."""
        what = "pruned" if self.pruned and self.has_plan else "dense"
        got = self.session(self._continuation).get_providers()[0]
        bits = f", int{self.manifest.bits} weights" if self.manifest.bits else ""
        return f"{what}: onnxruntime {onnxruntime().__version__} with {got}, {self.manifest.dtype}{bits}, opset {self.manifest.opset}"

    def first_logits(self, inputs: Mapping[str, Any]) -> Array:
        """Logits `[batch, vocabulary]` of the token after a padded batch as a processor gives it."""
        return start(self, inputs).logits

    def generate(self, inputs: Mapping[str, Any], max_new_tokens: int, *, stop: bool = True) -> Array:
        """Greedy tokens `[batch, new]` that follow a padded batch as a processor gives it; after a sample's end, its end token again."""
        return generate(self, inputs, max_new_tokens, stop=stop)

    @property
    def _continuation(self) -> str:
        dense = self.manifest.dense
        return self.manifest.continuation if self.pruned or dense is None else dense


@dataclass
class Turn:
    """What a call leaves for the next: `logits` `[batch, vocabulary]` of its last token, the cache by input name, mask, next positions."""

    logits: Array
    cache: dict[str, Any]
    mask: Array
    following: Array


def open_export(folder: Path | str, device: str = "cpu", *, allow_cpu: bool = False, threads: int | None = None) -> Exported:
    """The export in a folder. Raises YopoError if there is none, or without onnxruntime."""
    onnxruntime()
    path = Path(folder)
    return Exported(path, manifests.read(path), device, allow_cpu, threads)


def generate(exported: Exported, inputs: Mapping[str, Any], max_new_tokens: int, *, stop: bool = True) -> Array:
    ends = exported.manifest.end_tokens if stop else ()
    return greedy(start(exported, inputs), partial(advance, exported), max_new_tokens, ends)


def greedy(turn: Turn, following: Callable[[Turn, Array], Turn], max_new_tokens: int, ends: Sequence[int]) -> Array:
    """Greedy tokens `[batch, new]` after a first call; `following` makes the next one from tokens `[batch, 1]`."""
    tokens: list[Array] = []
    ended = np.zeros(len(turn.logits), bool)
    for _ in range(max_new_tokens):
        chosen = turn.logits.argmax(-1)
        if ends:
            chosen = np.where(ended, ends[0], chosen)
            ended |= np.isin(chosen, ends)
        tokens.append(chosen)
        if ended.all() or len(tokens) == max_new_tokens:
            break
        turn = following(turn, chosen[:, None])
    return np.stack(tokens, 1)


def start(exported: Exported, inputs: Mapping[str, Any]) -> Turn:
    """The first call: a prefill of pictures and text, or of text alone."""
    facts = exported.manifest
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    prompts = _prompts(facts, arrays)
    _check_length(facts, prompts.positions, 0)
    embeds = _embedded(exported, prompts.ids)
    if prompts.grid is not None:
        _put(embeds, prompts, _features(exported, arrays, str(prompts.grid)))
    return first_call(exported, prompts, embeds)


def first_call(exported: Exported, prompts: Prompts, embeds: Array) -> Turn:
    """The first call of prompts whose embeddings `[batch, length, hidden]` hold the pictures' features."""
    facts = exported.manifest
    feed = {"inputs_embeds": embeds, "attention_mask": prompts.mask, "position_ids": prompts.positions}
    file = exported._continuation
    if prompts.grid is not None and file != facts.dense and facts.prefill:
        file = facts.prefill[str(prompts.grid)]
    opened = exported.session(file)
    if "visual_starts" in {one.name for one in opened.get_inputs()}:
        feed["visual_starts"] = prompts.starts
    return call(opened, feed | empty_cache(opened, len(prompts.ids)), prompts.mask, prompts.positions)


def advance(exported: Exported, turn: Turn, ids: Array) -> Turn:
    """A further call with text tokens `[batch, new]`."""
    batch, new = ids.shape
    positions = turn.following[:, None] + np.arange(new)
    if exported.manifest.multimodal_positions:
        positions = np.broadcast_to(positions, (3, batch, new)).copy()
    _check_length(exported.manifest, positions, 0)
    mask = np.concatenate([turn.mask, np.ones((batch, new), np.int64)], 1)
    feed = {"inputs_embeds": _embedded(exported, ids), "attention_mask": mask, "position_ids": positions}
    opened = exported.session(exported._continuation)
    if "visual_starts" in {one.name for one in opened.get_inputs()}:
        feed["visual_starts"] = np.zeros((batch, 0), np.int64)
    return call(opened, feed | turn.cache, mask, positions)


def call(opened: Any, feed: Mapping[str, Any], mask: Array, positions: Array) -> Turn:
    """One call. K and V stay where they are: nothing is copied between calls on a CPU."""
    value = onnxruntime().OrtValue
    wanted = [one.name for one in opened.get_outputs()]
    given = {name: one if isinstance(one, value) else value.ortvalue_from_numpy(np.ascontiguousarray(one)) for name, one in feed.items()}
    found = dict(zip(wanted, opened.run_with_ort_values(wanted, given), strict=True))
    logits = found.pop("logits").numpy()[:, -1].astype(np.float32)
    cache = {name.replace(PRESENT_CODES, PAST_CODES).replace(f"{PRESENT}.", f"{PAST}."): one for name, one in found.items()}
    following = positions.max(0) if positions.ndim == 3 else positions
    return Turn(logits, cache, mask, following.max(1) + 1)


def _prompts(facts: Manifest, arrays: Mapping[str, Array]) -> Prompts:
    ids = arrays["input_ids"]
    mask = arrays.get("attention_mask", np.ones_like(ids))
    visual = np.isin(ids, facts.image_tokens) if any(name in arrays for name in PIXELS) else np.zeros(ids.shape, bool)
    grid = None
    grids = [parse_grid(text) for text in facts.grids]
    if visual.any() and facts.tile is not None:
        grid = grid_by_tokens(visual & mask.astype(bool), {grid: facts.tokens(grid) for grid in grids})
    elif visual.any():
        sizes = next((arrays[name] for name in SIZES if name in arrays), None)
        grid = grid_of(sizes, facts.merge, grids)
    return arrange(ids, mask, visual, grid, facts.multimodal_positions, None if grid is None else facts.tokens(grid))


def _features(exported: Exported, arrays: Mapping[str, Array], grid: str) -> Array:
    """`[images * tokens, hidden]`"""
    given = [arrays[name] for name in PIXELS if name in arrays]
    if len(given) != 1:
        raise YopoError("Pictures and videos cannot be in one batch of an export.", "Ask about them apart.")
    pixels = given[0]
    if pixels.ndim == 5 and exported.manifest.tile is None:  # tiles by sample; those of zeros fill up the batch
        pixels = pixels.reshape(-1, *pixels.shape[2:])
        pixels = pixels[pixels.any((1, 2, 3))]
    opened = exported.session(exported.manifest.vision[grid])
    tiles = opened.get_inputs()[0].shape[1]
    if exported.manifest.tile is not None and pixels.shape[1] != tiles:
        raise YopoError(
            f"The pictures have {pixels.shape[1]} tiles, those of the exported grid {grid} have {tiles}.",
            "Give pictures of the sizes that were exported, the whole batch of one.",
        )
    kind = np.float16 if opened.get_inputs()[0].type == "tensor(float16)" else np.float32
    return opened.run(["image_features"], {"pixel_values": pixels.astype(kind)})[0]


def _put(embeds: Array, prompts: Prompts, features: Array) -> None:
    """Features in the places of their image tokens, in the order of samples and images."""
    tokens = prompts.tokens
    sample, image = np.nonzero(prompts.present)
    if len(features) != len(sample) * tokens:
        raise YopoError(
            f"The pictures have {len(features)} features, the prompts places for {len(sample) * tokens}.", "Is a picture missing?"
        )
    places = prompts.starts[sample, image][:, None] + np.arange(tokens)
    embeds[sample[:, None], places] = features.reshape(len(sample), tokens, -1)


def _embedded(exported: Exported, ids: Array) -> Array:
    found: Array = exported.session(exported.manifest.embedding).run(["inputs_embeds"], {"input_ids": ids.astype(np.int64)})[0]
    return found


def empty_cache(opened: Any, batch: int) -> dict[str, Array]:
    """The cache before the first call, by input name."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}
    shapes = {one.name: (one, [batch, *(size if isinstance(size, int) else 0 for size in one.shape[1:])]) for one in opened.get_inputs()}
    return {name: np.zeros(shape, kinds[one.type]) for name, (one, shape) in shapes.items() if name.startswith("past_")}


def _check_length(facts: Manifest, positions: Array, more: int) -> None:
    """Beyond its limit the frequencies of the rotary embedding would be others than those in the graphs."""
    if (largest := int(positions.max()) + more) >= facts.max_positions:
        raise YopoError(f"The prompt reaches position {largest}, the graphs are made for {facts.max_positions}.", "Shorten it.")
