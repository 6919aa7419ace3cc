"""Activations at the input of every layer, kept so that a trial starts at the first layer that it changes.

They stay in memory up to a limit; the later ones go to files of a temporary folder, which is removed when the search ends.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerInput:
    """Rows of a batch at a layer's input, as in the runtime's call; visual ones as they last were where none is in play any more."""

    text: Tensor
    visual: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.text, self.visual


class ActivationCache:
    """States by layer and batch: those of the plan that changes are tried of, and the candidates, those of the last trial.

    When the search goes on from the plan of the last trial, the candidates are accepted in the place of the states before.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.folder = folder
        self.disk_bytes = 0
        self._accepted: dict[tuple[int, int], LayerInput | Path] = {}
        self._candidates: dict[tuple[int, int], LayerInput | Path] = {}
        self._temporary: Path | None = None
        self._files = 0
        self._alive: dict[int, int] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of tensors in memory, each counted once: frozen layers share their visual rows."""
        return sum(self._alive.values())

    def get(self, layer: int, batch: int) -> LayerInput:
        state = self._accepted[layer, batch]
        return state if isinstance(state, LayerInput) else _load(state)

    def put(self, layer: int, batch: int, state: LayerInput) -> None:
        """Keep a state as a candidate, until it is accepted or discarded."""
        new = sum(tensor.nbytes for tensor in state.tensors if id(tensor) not in self._alive)
        if self.used_bytes + new <= self.memory_bytes:
            for tensor in state.tensors:
                self._hold(tensor)
            self._candidates[layer, batch] = state
        else:
            self._candidates[layer, batch] = self._save(state)

    def accept(self, batches: Iterable[int]) -> None:
        """Put the candidates of these batches in the place of the states before."""
        for key in self._candidates_of(batches):
            self._remove(self._accepted.get(key))
            self._accepted[key] = self._candidates.pop(key)

    def discard(self, batches: Iterable[int]) -> None:
        """Forget the candidates of these batches."""
        for key in self._candidates_of(batches):
            self._remove(self._candidates.pop(key))

    def _candidates_of(self, batches: Iterable[int]) -> list[tuple[int, int]]:
        chosen = set(batches)
        return [key for key in self._candidates if key[1] in chosen]

    def blocks(self, batches: Sequence[int], layer: int) -> Iterator[list[int]]:
        """Batches that go through the layers together: as many as a quarter of the memory holds at once, at least one."""
        block: list[int] = []
        size = 0
        for batch in batches:
            state = self._accepted[layer, batch]
            more = state.stat().st_size if isinstance(state, Path) else sum(tensor.nbytes for tensor in state.tensors)
            if block and size + more > self.memory_bytes // 4:
                yield block
                block, size = [], 0
            block.append(batch)
            size += more
        if block:
            yield block

    def _hold(self, tensor: Tensor) -> None:
        if id(tensor) not in self._alive:
            self._alive[id(tensor)] = tensor.nbytes
            weakref.finalize(tensor, self._alive.pop, id(tensor), None)

    def _save(self, state: LayerInput) -> Path:
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="yopo-prefixes-", dir=self.folder))
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        path = self._temporary / f"{self._files}.pt"
        self._files += 1
        torch.save([tensor.clone() for tensor in state.tensors], path)
        self.disk_bytes += path.stat().st_size
        return path

    def _remove(self, state: LayerInput | Path | None) -> None:
        if isinstance(state, Path):
            self.disk_bytes -= state.stat().st_size
            state.unlink()


def _load(path: Path) -> LayerInput:
    return LayerInput(*torch.load(path, weights_only=True))
