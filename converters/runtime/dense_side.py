"""The dense side of a converted model: the same weights with the plan switched off, and the projector as it was before healing."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any


class DenseSide:
    """What the converted models of all families share, beside their forward pass. `projector` is the module that healing may change."""

    projector = "model.multi_modal_projector"
    model: Any
    config: Any
    get_submodule: Any

    def keep_base_projector(self) -> None:
        """Make the place of the base projector in a model whose projector was healed; its weights are in the files."""
        if (self.config.yopo or {}).get("base_projector"):
            self.model.base_projector = deepcopy(self.get_submodule(self.projector))

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Within this context the plan is switched off and the base projector in place: the dense model runs."""
        parent, _, name = self.projector.rpartition(".")
        place: Any = self.get_submodule(parent)
        healed = getattr(place, name)
        with self.model.language_model.dense():
            setattr(place, name, getattr(self.model, "base_projector", healed))
            try:
                yield
            finally:
                setattr(place, name, healed)

    def path_report(self) -> str:
        """Which path runs, in one line."""
        report: str = self.model.language_model.report()
        return report
