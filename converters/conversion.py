"""From a dense model to a pruned checkpoint: the plan is chosen, then everything is written."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .adapters.merge import with_adapter
from .bench.process_memory import PeakMemory
from .bundled import required_samples
from .calibration.statistics import Statistics
from .checkpoint.config import read_config
from .checkpoint.convert import Provenance, check_output, check_plan
from .checkpoint.convert import convert as write_converted
from .checkpoint.folder import scratch
from .checkpoint.source import Source
from .data.samples import SamplesLike
from .data.split import SampleSplit
from .healing.heal import HealingRequest, heal_model
from .model import Model, opened
from .plan_choice import SEARCHED, PlanChoice, PlanRequest, choose_plan
from .planner import DEFAULT_EFFORT, SAMPLES
from .planning.compensation import LinearCompensation
from .planning.cost import cost
from .planning.fitting import fit_compensations
from .planning.frontier import Point
from .planning.prefill import PrefillCost
from .planning.search.search import Effort
from .processes import joined, only_first
from .progress import Listener, Message, Progress, unheard
from .runtime.plan import Grid, Plan, dense_plan, to_json
from .serving.checks import check_family, check_served


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: the plan (None: nothing was pruned), what it costs, and the folder that was written (None: a dry run).

    `calibration` says what the plan was made on, `compensation` what config.json says of it, `healing` how healing went; JSON-ready,
    None where there was none.
    """

    model: str
    plan: Plan | None
    costs: PrefillCost
    budget: float | None
    calibration: dict[str, Any] | None
    output: Path | None
    compensation: dict[str, Any] | None
    seconds: float
    peak_memory_bytes: int
    healing: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        facts = {
            "calibration": self.calibration,
            "plan": None if self.plan is None else to_json(self.plan),
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "output": None if self.output is None else str(self.output),
            "compensation": self.compensation,
        }
        healing = {} if self.healing is None else {"healing": self.healing}
        return {"model": self.model, **self.costs.to_json(self.budget), **facts, **healing}


def convert(
    model: Model | str | Path,
    plan: Plan | Point | float,
    output: Path | str | None = None,
    *,
    samples: SamplesLike | None = None,
    count: int = SAMPLES,
    seed: int = 0,
    recipe: str = SEARCHED,
    statistics: Statistics | Path | None = None,
    grid: Grid | None = None,
    refit: bool | None = None,
    served_by: str | None = None,
    effort: Effort | str | float = DEFAULT_EFFORT,
    heal: int | None = None,
    adapter: Path | str | None = None,
    dry_run: bool = False,
    force: bool = False,
    command: str | None = None,
    progress: Listener = unheard,
) -> Conversion:
    """Prune a dense model by a plan, and write a checkpoint that transformers loads, to `output` (default: ./NAME-yopo-BUDGET).

    `plan` is a `Plan`, what `frontier.at(budget)` gives, or a budget, for which one is made now by the `recipe`: auto (a measured search),
    interlaced (from statistics, at once), yopo, shortv, opskip or vica; a budget of 1 prunes nothing and writes the native form.
    `refit` gives visual tokens K and V of their own, fitted on `samples` (default: those that the frontier was planned on): None does so
    where the plan was measured so or needs it, where the recipe is auto or interlaced, and where samples come with a `Plan`.
    `effort` is that of the search, as `plan` takes it.
    `served_by` vllm: a plan that its plugin does not serve is not made, or is refused where it is given.
    `adapter`, the folder of a LoRA adapter of the model, is merged into it first, in a folder beside the output that is gone in the end.
    The weights are unloaded before the new ones are written. `dry_run` decides all and writes nothing; `force` replaces an existing
    checkpoint; `command` is what the model's card says that it was made by. Raises YopoError.
    """
    started = time.monotonic()
    model = opened(model).dense()
    if served_by is not None:
        check_family(model.checkpoint.family)
    command = command or f"yopo.convert(yopo.load({model.name!r}), ...)"
    target = Path(output) if output is not None else _default_output(model, plan)
    healing = None if heal is None or dry_run else _healing(model, samples, heal, seed, command)
    with ExitStack() as stack:
        with PeakMemory() as memory:
            if not dry_run:
                check_output(target, force)
            if adapter is not None:
                model = merged_model(model, Path(adapter), stack.enter_context(scratch(target)), command, progress)
            split = None if samples is None else SampleSplit.of(samples, count, seed)
            choice = choose_plan(model, PlanRequest(plan, recipe, split, seed, statistics, grid, refit, served_by, effort), progress)
            if served_by is not None and choice.plan is not None:
                check_served(choice.plan)
            compensations: dict[int, LinearCompensation] = {}
            if not dry_run:
                choice = _with_samples(choice, model, count, seed)
                compensations = _compensations(model, choice, progress)
            model.unload()
            only_first()
            folder = target if healing is None else stack.enter_context(scratch(target)) / target.name
            if not dry_run:
                _write(model, choice, compensations, folder, command, force, progress)
        conversion = Conversion(
            model.name,
            choice.plan,
            _costs(model, choice.plan),
            choice.budget,
            choice.calibration,
            None if dry_run else target,
            None if dry_run else read_config(folder).get("yopo", {}).get("compensation"),
            time.monotonic() - started,
            memory.bytes,
        )
        if healing is None:
            return conversion
        return replace(conversion, healing=heal_model(folder, healing, target, force, progress))


def merged_model(model: Model, adapter: Path, folder: Path, command: str, progress: Listener) -> Model:
    """The dense model with an adapter merged into its weights, in a folder of its own below `folder`. Raises YopoError."""
    name = f"{model.name}+{adapter.resolve().name}"
    progress(Message(f"Merging the adapter {adapter}."))
    merged = write_converted(with_adapter(model.checkpoint, adapter), None, folder / name, Provenance(model.source, command))
    return replace(model, source=Source(name, merged))


def _healing(model: Model, samples: SamplesLike | None, steps: int, seed: int, command: str) -> HealingRequest:
    """What healing is asked to do after converting. Raises YopoError where it has no samples."""
    learned = required_samples(samples, model.on_one_device("Healing"), "Healing learns")
    return HealingRequest(learned, steps, seed=seed, device=model.device, dtype=model.dtype, command=command)


def _with_samples(choice: PlanChoice, model: Model, count: int, seed: int) -> PlanChoice:
    """The choice with samples to fit on, where it needs them and came without."""
    if choice.plan is None or not choice.refit or choice.split is not None:
        return choice
    samples = required_samples(None, model, "K and V of visual tokens are fitted")
    return replace(choice, split=SampleSplit.of(samples, count, seed))


def _compensations(model: Model, choice: PlanChoice, progress: Listener) -> dict[int, LinearCompensation]:
    """K and V of visual tokens, fitted layer by layer."""
    if choice.plan is None or choice.split is None or not choice.refit:
        return {}
    progress(Message("Fitting K and V of visual tokens."))
    processes = joined()
    batches = choice.split.batches(model.loaded.processor, processes=processes)
    return fit_compensations(model.loaded.model, batches, choice.plan, processes)


def _write(
    model: Model,
    choice: PlanChoice,
    compensations: dict[int, LinearCompensation],
    folder: Path,
    command: str,
    force: bool,
    progress: Listener,
) -> None:
    """The checkpoint."""
    fitted_on = len(choice.split.seen) if compensations and choice.split else None
    provenance = Provenance(model.source, command, choice.budget, choice.recipe, choice.calibration, fitted_on)

    def written(done: int, total: int) -> None:
        progress(Progress("Writing", done, total, "bytes"))

    write_converted(model.checkpoint, choice.plan, folder, provenance, refits=compensations, force=force, progress=written)


def _default_output(model: Model, plan: Plan | Point | float) -> Path:
    """NAME-yopo-BUDGET in the working folder; a plan of no budget goes by the share that it reaches."""
    if isinstance(plan, Plan):
        return Path(f"{model.name}-yopo-{cost(check_plan(plan, model.checkpoint.sizes)).share:.3g}")
    return Path(f"{model.name}-yopo-{plan.asked if isinstance(plan, Point) else plan:g}")


def _costs(model: Model, plan: Plan | None) -> PrefillCost:
    """The plan's cost, or that of the dense model where there is none."""
    if plan is None:
        return PrefillCost.of_dense(dense_plan(model.checkpoint.sizes, model.checkpoint.grids))
    return PrefillCost.of(plan)
