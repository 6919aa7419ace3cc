"""A descent by price tables: many changes are chosen together from prices of all units at a plan, then the model is run at the plan that
they make, and prices are made anew. No move is run alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log

from ...runtime.plan import MAX_STRIDE, Plan, Sizes, from_json, normalise, to_json
from ..measure.plan_keys import plan_key
from ..measure.prices import Knobs, Pricing
from ..measure.trials import TrialSubset
from .chosen import Choice
from .descent import SearchStep
from .journal import Journal
from .moves import WINDOWS, rank_notches, visual_flops

STEPS = 0.45, 0.85  # of a plan's cost: the longest and the shortest step of a round
UNDER = 0.9  # of what a round aims at: so far down it goes first, and what is left is added where it helps the most


def priced_knobs(sizes: Sizes, without: tuple[str, ...]) -> Knobs:
    """What is priced beside heads and neurons."""
    strides = (1,) if "stride" in without else tuple(range(1, MAX_STRIDE + 1))
    ranks = () if "rank" in without else rank_notches(sizes)
    return Knobs(strides, (0,) if "window" in without else (*WINDOWS, 0), (None, *ranks))


@dataclass(frozen=True)
class PricedSteps:
    """Steps by prices from so many `probes` on the first questions, `few`. What was chosen is kept in the journal."""

    few: TrialSubset
    probes: int
    without: tuple[str, ...]
    journal: Journal

    @property
    def forwards(self) -> float:
        """Forward passes of a round: one of the plan, one back with each gradient, and one to compute the layers again on the way."""
        return self._share * (3 + self.probes)

    @property
    def _share(self) -> float:
        return self.few.trials.samples_of(self.few.batches) / self.few.trials.samples

    def down(self, start: SearchStep, limit: int, rounds: float) -> Iterator[SearchStep]:
        """The steps below `start` down to the first plan within the limit, in about so many rounds."""
        step = start
        while step.flops > limit:
            way = log(step.flops / limit)
            left = max(ceil(way / -log(STEPS[0])), min(round(rounds), int(way / -log(STEPS[1]))), 1)
            aim = max(limit, int(step.flops * (limit / step.flops) ** (1 / left)))
            plan = self.chosen(step.plan, aim, UNDER)
            if visual_flops(plan) >= step.flops:
                return
            step = SearchStep(plan, self.few.logit_drift(plan), visual_flops(plan))
            rounds -= 1
            yield step

    def chosen(self, plan: Plan, limit: int, under: float) -> Plan:
        """The plan after the changes that prices choose: down to a share `under` of the limit, and up to it again."""
        key = f"{plan_key(plan)} {limit} {under:g}"
        knobs = priced_knobs(plan.sizes, self.without)
        pricing = Pricing(self.few.trials, self.few.batches, self.probes, knobs)
        if key in self.journal.plans:
            pricing.count(plan)
            return normalise(from_json(self.journal.plans[key]))
        choice = Choice(plan, pricing.of(plan), knobs, self.without)
        choice.down(int(limit * under))
        choice.up(limit)
        chosen = choice.result()
        self.journal.plans[key] = self.few.trials.processes.of_first(lambda: to_json(chosen))
        return normalise(from_json(self.journal.plans[key]))

    def rounds(self, now: int, limit: int, last: int, forwards: float) -> float:
        """How many rounds a descent to a limit may take of those that so many forward passes allow, down to the last limit."""
        way = log(max(now, limit + 1) / max(1, limit)) / max(1e-9, log(max(now, last + 1) / max(1, last)))
        return max(1.0, forwards / self.forwards * min(1.0, way))
