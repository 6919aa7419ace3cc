"""A stand-in for the trials of a model: the drift of a plan comes from a function, so that a test's values can be worked out by hand."""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

from converters.planning.measure.trial import Some
from converters.runtime.plan import Plan, normalise


class ToyTrials:
    """Trials of so many questions, one of each batch and of one token each: `drift(plan, question)`.

    `uncertain` is the standard error of every difference. A measurement of a plan on all questions counts as one forward pass.
    """

    def __init__(self, plan: Plan, drift: Callable[[Plan, int], float], questions: int = 1, uncertain: float = 0.0) -> None:
        self.plan = normalise(plan)
        self.batches = range(questions)
        self.forwards = 0.0
        self.prefixes = SimpleNamespace(held_bytes=0, disk_bytes=0)
        self.heard: Callable[[], None] = lambda: None
        self._drift, self._uncertain = drift, uncertain
        self._measured: set[tuple[Plan, int]] = set()

    @property
    def samples(self) -> int:
        return len(self.batches)

    def samples_of(self, batches: Iterable[int]) -> int:
        return len(list(batches))

    def some(self, samples: int) -> Some:
        return Some(self, self.batches[:samples])  # type: ignore[arg-type]

    def settle(self, plan: Plan) -> None:
        self.plan = plan

    def shift(self, plan: Plan, batches: Sequence[int] | None = None) -> float:
        """The mean drift on these questions (default: all)."""
        batches = self.batches if batches is None else batches
        new = {(plan, question) for question in batches} - self._measured
        self.forwards += len(new) / self.samples
        self._measured |= new
        return sum(self._drift(plan, question) for question in batches) / len(batches)

    def race(self, plan: Plan, rival: Plan, slack: float) -> float:
        return self.shift(plan)

    def error(self, plan: Plan, rival: Plan) -> float:
        return self._uncertain
