"""A journal of prices: every plan that a search has measured. With it an interrupted search goes the same way without measuring."""

import json
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...checkpoint.private import whole_file
from ...errors import YopoError
from ...json_files import conforming, read_object

SCHEMA = 1
MAX_BYTES = 1 << 28


class SearchState(BaseModel):
    """What is in the file."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    version: int = Field(alias="schema")
    search: dict[str, Any]
    prices: dict[str, float]
    plans: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Journal:
    """Prices by the plan's key, and plans by what they were chosen for, read from a file where there is one. `search` tells of which
    search they are (JSON-ready).

    Raises YopoError where the file is of another search, or no journal.
    """

    def __init__(self, path: Path | None, search: dict[str, Any]) -> None:
        self.path = path
        self.search: dict[str, Any] = json.loads(json.dumps(search))
        state = self._read() if path is not None and path.exists() else None
        self.prices: dict[str, float] = {} if state is None else dict(state.prices)
        self.plans: dict[str, dict[str, Any]] = {} if state is None else dict(state.plans)
        self._written, self._last = self._size, monotonic()

    def write(self, patience: float = 0.0) -> None:
        """Write what is new, whole or not at all; not within so many seconds of the last time: a journal grows long."""
        if self.path is None or self._size == self._written or monotonic() < self._last + patience:
            return
        with whole_file(self.path) as partial:
            partial.write_text(
                json.dumps({"schema": SCHEMA, "search": self.search, "prices": self.prices, "plans": self.plans}), encoding="utf-8"
            )
        self._written, self._last = self._size, monotonic()

    @property
    def _size(self) -> int:
        return len(self.prices) + len(self.plans)

    def _read(self) -> SearchState:
        assert self.path is not None
        hint = "Remove it to search anew, or name another file."
        state = conforming(SearchState, read_object(self.path, hint, MAX_BYTES), f"The state {self.path} of a search", hint)
        search = state.search if state.version == SCHEMA else {}
        if different := sorted(name for name in {*search, *self.search} if search.get(name) != self.search.get(name)):
            raise YopoError(f"The state {self.path} is of another search: {', '.join(different)} differ.", hint)
        return state
