"""Running a package's graphs as its runtime does: embeddings in, every `present` back as the next `past`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..onnx.onnxruntimes import session
from ..onnx.session import Array, Turn, call, empty_cache, greedy

PIXELS = "pixel_values"
IDS = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


@dataclass
class PackageSession:
    """The graphs of a package, on a CPU. Visual rows go to the places of `image_token`, by the embedding graph or by the caller."""

    embedding: Path
    decoder: Path
    vision: Path
    image_token: int
    dtype: str
    bits: int | None
    _sessions: dict[Path, Any] = field(default_factory=dict)

    def first_logits(self, inputs: Mapping[str, Any]) -> Array:
        """Logits `[batch, vocabulary]` of the token after a padded batch as a processor gives it."""
        return self._first(inputs).logits

    def generate(self, inputs: Mapping[str, Any], max_new_tokens: int, *, stop: bool = True) -> Array:
        """Greedy tokens `[batch, new]`. Which tokens end an answer is the runtime's to know: nothing stops here."""
        assert not stop
        return greedy(self._first(inputs), self._next, max_new_tokens, ())

    def release(self) -> None:
        """Forget the sessions and the memory of their weights."""
        self._sessions.clear()

    def _session(self, file: Path) -> Any:
        if file not in self._sessions:
            self._sessions[file] = session(file)
        return self._sessions[file]

    def _first(self, inputs: Mapping[str, Any]) -> Turn:
        ids, mask = (np.asarray(inputs[name]).astype(np.int64) for name in ("input_ids", "attention_mask"))
        features = None
        if PIXELS in inputs:
            features = self._session(self.vision).run(None, {PIXELS: np.asarray(inputs[PIXELS]).astype(np.float32)})[0]
        decoder = self._session(self.decoder)
        return self._call(self._embedded(ids, features), mask, empty_cache(decoder, len(ids)))

    def _next(self, turn: Turn, ids: Array) -> Turn:
        mask = np.concatenate([turn.mask, np.ones_like(ids, np.int64)], 1)
        return self._call(self._embedded(ids, None), mask, turn.cache)

    def _call(self, embeds: Array, mask: Array, cache: Mapping[str, Any]) -> Turn:
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -embeds.shape[1] :]
        feed = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
        return call(self._session(self.decoder), feed | dict(cache), mask, positions)

    def _embedded(self, ids: Array, features: Array | None) -> Array:
        """`[batch, length, hidden + 1]`"""
        opened = self._session(self.embedding)
        takes = {one.name: one for one in opened.get_inputs()}
        feed = {"input_ids": ids.astype(IDS[takes["input_ids"].type])}
        if "image_features" in takes:
            none = np.zeros((0, takes["image_features"].shape[1]), np.float32)
            return opened.run(None, feed | {"image_features": none if features is None else features})[0]
        embeds = opened.run(None, feed)[0]
        if features is not None:
            embeds[ids == self.image_token] = features
        return embeds
