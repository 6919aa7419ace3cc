"""What a Python program does with `import yopo`, and the command line with its options: one function for each command.

Every function takes a model as `load` gives it, or by its name or folder; samples as a list of `Sample`, a JSONL file or a bundled set's
name; and `progress`, which is called with what is going on (`converters.progress`). What is wrong is a `YopoError` with a hint.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .bench.benchmark import Bench, Benchmark, BenchRequest
from .bench.exports import ExportBenchmark, ExportBenchRequest, bench_export
from .bench.process_memory import PeakMemory
from .calibration.measuring import measured_statistics, save_statistics
from .calibration.statistics import Statistics
from .checkpoint.config import read_config
from .checkpoint.convert import Provenance, check_output, check_plan
from .checkpoint.convert import convert as write_converted
from .checkpoint.folder import scratch
from .data.prompts import encode, prompt
from .data.sample import open_image
from .data.samples import BUNDLED, SamplesLike, is_bundled, samples_of
from .data.split import SampleSplit
from .errors import YopoError
from .evaluation.answering import generate
from .evaluation.evaluate import Evaluation, evaluate_samples
from .evaluation.verification import Verification, checks
from .export import TARGETS, exporter
from .export.preparation import Wanted, request_of
from .export.request import ExportReport
from .healing.heal import BATCH_SIZE, STEPS, Healing, Tune, heal_model
from .healing.heal import Request as HealingRequest
from .inspection import inspect, read_plan
from .loading import DEMO, Dtype, locate
from .model import Model, load, opened
from .planning.compensation import LinearCompensation
from .planning.cost import cost
from .planning.fitting import fit_compensations
from .planning.frontier import Frontier, Point
from .planning.headmask import Cuts, config_headmask, headmask_plan, read_headmask
from .planning.measure.answers import answered
from .planning.measure.trials import Trials
from .planning.prefill import PrefillCost
from .planning.recipes import RECIPES, make_plan
from .planning.search.search import Effort, Report, search, usual_effort
from .processes import joined, only_first
from .progress import Listener, Message, Progress, SearchProgress, unheard
from .runtime.plan import Grid, Plan, dense_plan, factored, to_json
from .serving.checks import ENGINES, KNOBS_WITHOUT, check_served

__all__ = ["ask", "bench", "calibrate", "convert", "evaluate", "export", "heal", "inspect", "load", "plan", "verify"]

SAMPLES = 128  # that plans are made on, unless told otherwise
BUDGETS = (0.5, 0.25, 0.12, 0.06, 0.04)
HEADMASK, OWN_PLAN = ".npy", "config"
SEARCHED = "auto"
REFITTED = (SEARCHED, "interlaced")
"""Recipes whose plans come with refits unless told otherwise; the others are what others do."""


@dataclass(frozen=True)
class Answer:
    """What a model said, and by which path of the runtime."""

    text: str
    path: str

    def to_json(self) -> dict[str, Any]:
        """`answer` and `path`."""
        return {"answer": self.text, "path": self.path}


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


def calibrate(
    model: Model | str | Path,
    samples: SamplesLike,
    *,
    count: int = SAMPLES,
    seed: int = 0,
    file: Path | None = None,
    progress: Listener = unheard,
) -> Statistics:
    """Statistics of a dense model: how much every head reads and adds, and every neuron, on `count` of the samples, drawn with `seed`.

    `file` keeps them: where it exists, they are read from it, else they are written there. Raises YopoError.
    """
    model = opened(model).dense()
    if file is not None and file.exists():
        found = Statistics.load(file).of_model(model.fingerprint)
        progress(Message(f"Using the {found.samples} samples' statistics in {file}: nothing is calibrated."))
        return found
    if file is not None and not file.parent.is_dir():
        raise YopoError(f"The folder {file.parent} does not exist.", "Statistics are written there: make it first.")
    chosen = samples_of(samples, answers=False, count=count, seed=seed)
    found = measured_statistics(model.loaded, model.name, model.fingerprint, chosen, progress)
    found = replace(found, questions_from=chosen.file_name, seed=seed)
    if file is not None and joined().first:
        save_statistics(found, file)
    return found


def plan(
    model: Model | str | Path,
    samples: SamplesLike | SampleSplit,
    budgets: Sequence[float] = BUDGETS,
    *,
    count: int = SAMPLES,
    seed: int = 0,
    statistics: Statistics | Path | None = None,
    grid: Grid | None = None,
    refit: bool = True,
    effort: Effort | None = None,
    served_by: str | None = None,
    state: Path | None = None,
    progress: Listener = unheard,
) -> Frontier:
    """Search for the plans that change a dense model's answers least: one search, the best plan for every budget.

    `budgets` are shares of the dense visual FLOPs, within 0..1, counted on `grid` (default: that of the samples' median picture).
    `count` of the samples, drawn with `seed`, are planned on; answers in them are not used. Without `statistics` the model is
    calibrated on the same samples. `refit`: plans are measured with K and V of visual tokens refitted, as `convert` then does.
    `served_by` vllm: plans that its plugin serves. `state` is a file with which an interrupted search goes on where it was. `progress` gets
    `SearchProgress`. Raises YopoError.
    """
    without = _knobs_without(served_by)
    model = opened(model).dense()
    split = SampleSplit.of(samples, count, seed)
    known = _statistics(model, statistics, split, seed, progress)
    loaded = model.loaded
    if state is not None and state.exists():
        progress(Message(f"Going on with the search whose measurements {state} holds."))
    effort = effort or usual_effort(known.layers)
    frontier = search(
        loaded.model,
        split.batches(loaded.processor),
        known,
        budgets,
        grids=None if grid is None else (grid,),
        seed=seed,
        questions_from=split.samples.file_name,
        effort=replace(effort, compensated=refit, without=(*effort.without, *without)),
        state=state,
        progress=lambda report: progress(_search_progress(report)),
    )
    return replace(frontier, split=split)


def _knobs_without(engine: str | None) -> tuple[str, ...]:
    """Knobs of the search to be left alone for an engine. Raises YopoError for an unknown one."""
    if engine is None:
        return ()
    if engine not in ENGINES:
        raise YopoError(f"No plans are made for {engine!r}.", f"There are: {', '.join(ENGINES)}.")
    return KNOBS_WITHOUT


def _statistics(model: Model, given: Statistics | Path | None, split: SampleSplit, seed: int, progress: Listener) -> Statistics:
    """Those that were given, or are in the file; else measured now, and kept in the file if one was named.

    Of several processes all measure; what follows is for the first one, and the others end here.
    """
    if isinstance(given, Statistics):
        found = given.of_model(model.fingerprint)
    else:
        found = calibrate(model, split.chosen(), seed=seed, file=given, progress=progress)
    only_first()
    return found


def _search_progress(report: Report) -> SearchProgress:
    return SearchProgress(report.share, report.logit_drift, report.forwards, report.allowed, report.memory_bytes, report.disk_bytes)


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
    heal: int | None = None,
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
    `served_by` vllm: a plan that its plugin does not serve is not made, or is refused where it is given.
    The weights are unloaded before the new ones are written. `dry_run` decides all and writes nothing; `force` replaces an existing
    checkpoint; `command` is what the model's card says that it was made by. Raises YopoError.
    """
    started = time.monotonic()
    model = opened(model).dense()
    made = command or f"yopo.convert(yopo.load({model.name!r}), ...)"
    with ExitStack() as room:
        with PeakMemory() as memory:
            target = Path(output) if output is not None else _default_output(model, plan)
            if not dry_run:
                check_output(target, force)
            split = None if samples is None else SampleSplit.of(samples, count, seed)
            decision = _decision(model, _Wanted(plan, recipe, split, seed, statistics, grid, refit, served_by), progress)
            if served_by is not None and decision.plan is not None:
                check_served(decision.plan)
            if decision.plan is not None and decision.refit and decision.split is None and not dry_run:
                decision = replace(decision, split=SampleSplit.of(_needed(None, model, "K and V of visual tokens are fitted"), count, seed))
            refits = {} if dry_run or not decision.refit else _refits(model, decision, progress)
            model.unload()
            only_first()
            written = target if heal is None else room.enter_context(scratch(target)) / target.name
            if not dry_run:
                _write(model, decision, refits, written, made, force, progress)
        found = Conversion(
            model.name,
            decision.plan,
            _costs(model, decision.plan),
            decision.budget,
            decision.calibration,
            None if dry_run else target,
            None if dry_run else read_config(written).get("yopo", {}).get("compensation"),
            time.monotonic() - started,
            memory.bytes,
        )
        if heal is None or dry_run:
            return found
        request = HealingRequest(
            _needed(samples, model, "Healing learns"), heal, seed=seed, device=model.device, dtype=model.dtype, command=made
        )  # fmt: skip
        return replace(found, healing=heal_model(written, request, target, force, progress))


def _write(
    model: Model, decision: "_Decision", refits: dict[int, LinearCompensation], folder: Path, command: str, force: bool, progress: Listener
) -> None:  # fmt: skip
    """The checkpoint."""
    fitted_on = len(decision.split.seen) if refits and decision.split else None
    provenance = Provenance(model.source, command, decision.budget, decision.recipe, decision.calibration, fitted_on)

    def told(done: int, total: int) -> None:
        progress(Progress("Writing", done, total, "bytes"))

    write_converted(model.checkpoint, decision.plan, folder, provenance, refits=refits, force=force, progress=told)


@dataclass(frozen=True)
class _Wanted:
    """What was asked of `convert`."""

    plan: Plan | Point | float
    recipe: str
    split: SampleSplit | None
    seed: int
    statistics: Statistics | Path | None
    grid: Grid | None
    refit: bool | None
    served_by: str | None


@dataclass(frozen=True)
class _Decision:
    """What is to be written: a plan (None: the dense model), with refits or without, and where it is from."""

    plan: Plan | None
    budget: float | None
    refit: bool
    recipe: str | None = None
    calibration: dict[str, Any] | None = None
    split: SampleSplit | None = None


def _decision(model: Model, wanted: _Wanted, progress: Listener) -> _Decision:
    """From what was asked for to what is to be written."""
    plan, refit = wanted.plan, wanted.refit
    if isinstance(plan, Plan):
        checked = check_plan(plan, model.checkpoint.sizes)
        return _Decision(checked, None, bool(factored(checked) or wanted.split) if refit is None else refit, split=wanted.split)
    if isinstance(plan, Point):
        return _from_frontier(model, plan, wanted)
    if not 0 < plan <= 1:
        raise YopoError(f"The budget is {plan:g}, which is not within 0..1.", "It is the kept share of the visual FLOPs, such as 0.25.")
    if plan == 1:
        if refit:
            raise YopoError("There is nothing to make up for: at a budget of 1 nothing is pruned.", "Ask for no refit.")
        return _Decision(None, 1.0, False)
    return _from_recipe(model, plan, wanted, progress)


def _from_frontier(model: Model, point: Point, wanted: _Wanted) -> _Decision:
    """The plan of a frontier's point, which must be of this model."""
    frontier = point.frontier
    if frontier is None:
        raise YopoError("This point is of no frontier.", "Take it from one: frontier.at(0.25).")
    if frontier.model != model.fingerprint:
        raise YopoError(
            f"The frontier is of another model ({frontier.model[:12]}, this one is {model.fingerprint[:12]}).", "Make one with `yopo plan`."
        )
    checked = check_plan(point.plan, model.checkpoint.sizes)
    facts = {"samples": frontier.samples, "from": frontier.questions_from, "seed": frontier.seed, "data": frontier.data}
    refit = frontier.compensated or bool(factored(checked)) if wanted.refit is None else wanted.refit
    return _Decision(checked, point.asked, refit, SEARCHED, facts, wanted.split or frontier.split)


def _from_recipe(model: Model, budget: float, wanted: _Wanted, progress: Listener) -> _Decision:
    """A plan made now for a budget."""
    recipe, split = wanted.recipe, wanted.split
    if recipe not in (SEARCHED, *RECIPES):
        raise YopoError(f"There is no recipe {recipe!r}.", f"There are: {', '.join((SEARCHED, *RECIPES))}.")
    if split is None:
        raise YopoError("A plan is made on samples, and there are none.", "Pass samples: questions about pictures such as yours.")
    statistics = _statistics(model, wanted.statistics, split, wanted.seed, progress)
    refit = recipe in REFITTED if wanted.refit is None else wanted.refit
    grids = statistics.grids if wanted.grid is None else (wanted.grid,)
    if recipe == SEARCHED:
        chosen = _searched(model, budget, statistics, replace(wanted, split=split, refit=refit), progress)
    else:
        windows = "window" not in _knobs_without(wanted.served_by)
        chosen = make_plan(recipe, statistics, model.checkpoint.sizes, grids, budget, windows)
    facts = {"samples": statistics.samples, "from": statistics.questions_from, "seed": statistics.seed, "data": statistics.data}
    return _Decision(chosen, budget, refit or (wanted.refit is None and bool(factored(chosen))), recipe, facts, split)


def _searched(model: Model, budget: float, statistics: Statistics, wanted: _Wanted, progress: Listener) -> Plan:
    """The measured plan for one budget."""
    assert wanted.split is not None
    how: dict[str, Any] = {"seed": wanted.seed, "statistics": statistics, "grid": wanted.grid, "refit": wanted.refit}
    how |= {"served_by": wanted.served_by}
    frontier = plan(model, wanted.split, (budget,), **how, progress=progress)
    passes = f"{frontier.forwards:.0f} forward passes of {frontier.samples} questions."
    progress(Message(f"{passes} `yopo plan` makes the plans of several budgets at once."))
    return frontier.at(budget).plan


def _refits(model: Model, decision: _Decision, progress: Listener) -> dict[int, LinearCompensation]:
    """K and V of visual tokens, fitted layer by layer."""
    if decision.plan is None or decision.split is None:
        return {}
    progress(Message("Fitting K and V of visual tokens."))
    return fit_compensations(model.loaded.model, decision.split.batches(model.loaded.processor), decision.plan)


def _needed(samples: SamplesLike | None, model: Model, what: str) -> SamplesLike:
    """The samples; where there are none, for the demo the bundled ones. Raises YopoError for other models."""
    if samples is None and not is_demo(model):
        raise YopoError(f"{what} on samples, and there are none.", "Pass those that the plan was made on: --calibration FILE.jsonl")
    return BUNDLED if samples is None else samples


def _default_output(model: Model, plan: Plan | Point | float) -> Path:
    """NAME-yopo-BUDGET in the working folder; a plan of no budget goes by the share that it reaches."""
    if isinstance(plan, Plan):
        return Path(f"{model.name}-yopo-{cost(check_plan(plan, model.checkpoint.sizes)).share:.3g}")
    return Path(f"{model.name}-yopo-{plan.asked if isinstance(plan, Point) else plan:g}")


def _costs(model: Model, plan: Plan | None) -> PrefillCost:
    """The plan's cost, or that of the dense model where there is none."""
    if plan is None:
        return PrefillCost.of_dense(dense_plan(model.checkpoint.sizes, (model.checkpoint.grid,)))
    return PrefillCost.of(plan)


def evaluate(
    model: Model | str | Path,
    samples: SamplesLike,
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    progress: Listener = unheard,
) -> Evaluation:
    """Compare a pruned model with the dense one (itself, its plan switched off) on samples with answers; of a dense one score that alone.

    `count` of the samples, drawn with `seed`, are asked: all by default, 500 of a bundled set. Where healing changed the language model
    the dense one is not in the files any more, and `retention` is None. Raises YopoError.
    """
    asked: dict[str, Any] = {"count": count, "seed": seed, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    return next(iter(evaluate_tasks(model, [samples], **asked, progress=progress).values()))


def evaluate_tasks(
    model: Model | str | Path,
    tasks: Sequence[SamplesLike],
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    for_retention: bool = False,
    progress: Listener = unheard,
) -> dict[str, Evaluation]:
    """The same for several sets of samples, by name; all are read before the first is asked.

    `for_retention` refuses a model of which no retention can be measured. Raises YopoError.
    """
    chosen = [samples_of(samples, answers=True, count=count, seed=seed) for samples in tasks]
    names = [samples.name for samples in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise YopoError(f"Two tasks are named {', '.join(twice)}.", "A task is named after its file: rename one.")
    model = opened(model)
    missing = model.missing_dense_side()
    if for_retention:
        _check_retention(model, missing)
    if missing:
        progress(Message(f"{missing} Evaluate the base model beside it."))
    progress(Message(f"Path: {model.loaded.path_report()}"))
    how: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "progress": progress}
    return {samples.name: evaluate_samples(model.loaded, samples, dense_side=missing is None, **how) for samples in chosen}


def _check_retention(model: Model, missing: str | None) -> None:
    if not model.loaded.pruned:
        raise YopoError(f"{model.name} is dense: it has no retention to demand.", "Leave --min-retention out, or give a converted model.")
    if missing:
        raise YopoError(missing, "Leave --min-retention out, and evaluate the base model beside it.")


def ask(model: Model | str | Path, question: str, images: Sequence[Any] = (), *, max_new_tokens: int = 256) -> Answer:
    """Ask one question about pictures (files or PIL images), or in words alone. The answer is greedy. Raises YopoError."""
    pictures = [open_image(image) for image in images]
    loaded = opened(model).loaded
    inputs = encode(loaded.processor, [prompt(loaded.processor, question, len(pictures))], pictures)
    return Answer(generate(loaded, inputs, max_new_tokens)[0], loaded.path_report())


def verify(
    model: Model | str | Path, *, device: str | None = None, dtype: Dtype | str = Dtype.AUTO, progress: Listener = unheard
) -> Verification:  # fmt: skip
    """Check a converted model: file hashes, the plan against the tensors, and the runtime against the masked reference.

    `device` and `dtype` are those of a model given by name. Raises YopoError for what is no converted model.
    """
    if isinstance(model, Model):
        return Verification(model.name, tuple(checks(model.path, model.device, model.dtype)))
    return Verification(str(model), tuple(checks(locate(str(model)).path, device, Dtype(dtype))))


def heal(
    model: Model | str | Path,
    samples: SamplesLike,
    output: Path | str | None = None,
    *,
    steps: int = STEPS,
    tune: Tune | str = Tune.PROJECTOR,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    micro_batch: int | None = None,
    learning_rate: float | None = None,
    recompute: bool = False,
    answers: Path | None = None,
    force: bool = False,
    command: str | None = None,
    progress: Listener = unheard,
) -> Healing:
    """Heal a converted model: its projector (or `tune="language"`) learns to make it answer as the dense model does.

    The questions of `count` samples (default: all, 3000 of a bundled set) are answered by the dense model, into the folder `answers`
    (default: beside the output), and learnt in `steps` of `batch_size`; a tenth is held out. An interrupted run goes on when it is called
    again. `output` defaults to NAME-healed; `recompute` halves the speed and takes far less memory. Raises YopoError.
    """
    started = time.monotonic()
    model = opened(model)
    target = Path(output) if output is not None else Path(f"{model.name}-healed")
    made = command or f"yopo.heal(yopo.load({model.name!r}), ...)"
    how = Tune(tune), count, seed, batch_size, micro_batch, learning_rate, recompute, answers, model.device, model.dtype, made
    record = heal_model(model.path, HealingRequest(samples, steps, *how), target, force, progress)
    return Healing(model.name, target, record, time.monotonic() - started)


def export(
    model: Model | str | Path,
    output: Path | str | None = None,
    *,
    target: str = "onnxruntime",
    grids: Sequence[Grid] = (),
    opset: int = 23,
    dtype: Dtype | str = Dtype.AUTO,
    bits: int | None = None,
    parity: bool = True,
    force: bool = False,
    progress: Listener = unheard,
) -> ExportReport:
    """Write a model as ONNX graphs that do only the visual work of its plan, over the same weights.

    `target`: onnxruntime, genai or transformers-js. `output` is a folder of its own, with copies of the weights (default: beside the
    model's own). `grids` are visual grids where the tower takes any size; `dtype` is what graphs compute in, auto: float16 for float16
    weights, else float32; `bits`: 4 or 8 for rounded weights of the language model; `parity` compares with PyTorch. Raises YopoError.
    """
    if target not in TARGETS:
        raise YopoError(f"There is no export target {target!r}.", f"There are: {', '.join(TARGETS)}.")
    write = exporter(target)
    folder = None if output is None else Path(output)
    return write(request_of(opened(model), Wanted(folder, tuple(grids), opset, Dtype(dtype), bits, parity, force), progress))


def bench(request: BenchRequest | ExportBenchRequest | str | Path, *, progress: Listener = unheard) -> Benchmark | ExportBenchmark:
    """Time a pruned model against the dense one, and against token pruners, in turns in one process, beside what the machine can do.

    A name or folder stands for `BenchRequest(model)`; an `ExportBenchRequest` times what `export` wrote. Raises YopoError.
    """
    if isinstance(request, ExportBenchRequest):
        return bench_export(request, progress)
    bench = Bench(request if isinstance(request, BenchRequest) else BenchRequest(str(request)))
    return bench.result(bench.runs(progress))


def answer_changes(model: Model | str | Path, frontier: Frontier, *, progress: Listener = unheard) -> dict[float, float]:
    """By budget, the share of unseen samples (those that `plan` was given and did not use) that its plan answers differently.

    Raises YopoError for a frontier that was read from a file, and where all samples were planned on.
    """
    if frontier.split is None:
        raise YopoError("The samples of this frontier are not at hand.", "Use the frontier that `plan` gave.")
    frontier.split.check_unseen()
    loaded = opened(model).dense().loaded
    progress(Message(f"Asking {frontier.split.unseen} questions that the search did not see."))
    trials = Trials(
        loaded.model,
        (answered(loaded.model, batch) for batch in frontier.split.batches(loaded.processor, unseen=True)),
        frontier.path[0].plan,
    )

    def changed(plan: Plan) -> float:
        fitting = frontier.compensated and frontier.split
        refits = fit_compensations(loaded.model, fitting.batches(loaded.processor), plan) if fitting else None
        return trials.changed(plan, refits)

    return {point.asked: changed(point.plan) for point in frontier.asked if point.asked is not None}


def plan_from(
    model: Model | str | Path, file: Path | str, *, window: int | None = None, depth: int | None = None, ffn_ratio: int | None = None
) -> Plan:  # fmt: skip
    """The plan in a JSON file, a published head mask (.npy), or what a fine-tuned checkpoint's own config.json says ("config").

    With a head mask, `window` is the side of the window that visual tokens see, `depth` the layers that keep visual tokens, and visual
    tokens use the first 1/`ffn_ratio` neurons; what is not given is what the checkpoint's config.json says. Raises YopoError.
    """
    model = opened(model).dense()
    if str(file) != OWN_PLAN and Path(file).suffix != HEADMASK:
        return check_plan(read_plan(Path(file)), model.checkpoint.sizes)
    sizes = model.checkpoint.sizes
    cuts = Cuts(window, depth, ffn_ratio).filled(Cuts.of(model.config))
    mask = config_headmask(model.config, sizes) if str(file) == OWN_PLAN else read_headmask(Path(file))
    return check_plan(headmask_plan(mask, cuts, sizes, (model.checkpoint.grid,)), sizes)


def smallest_budget(changes: Mapping[float, float], most: float) -> float:
    """The smallest budget of those that change at most this share of the answers (`answer_changes`). Raises YopoError for none."""
    if within := [budget for budget, share in changes.items() if share <= most]:
        return min(within)
    raise YopoError(
        f"No budget changes at most {most:.2%} of the unseen answers; the least is {min(changes.values()):.2%}.",
        "Plan for larger budgets, or allow a larger --max-drop.",
    )


def default_samples(model: Model, chosen: Plan | Point | float, progress: Listener = unheard) -> SamplesLike | None:
    """What to plan and fit on where no samples are given: the bundled ones, with a warning for a model that they are unlike.

    `chosen` is what `convert` gets: a `Plan`, and a budget of 1, need none; a frontier's point needs what it was planned on, None where
    that is no bundled set.
    """
    if isinstance(chosen, Plan) or chosen == 1:
        return None
    if isinstance(chosen, Point) and chosen.frontier is not None:
        return chosen.frontier.questions_from if is_bundled(chosen.frontier.questions_from) else None
    return bundled_samples_for(model, progress)


def bundled_samples_for(model: Model, progress: Listener) -> str:
    """The name of the bundled samples, with a warning for a model that they are unlike."""
    if not is_demo(model):
        progress(
            Message(
                f"{model.name} is calibrated on the bundled pictures of coloured shapes, which are unlike what it is used for. "
                "Pass --calibration FILE.jsonl with about a hundred pictures and questions of yours.",
                warning=True,
            )
        )
    return BUNDLED


def is_demo(model: Model) -> bool:
    """Whether this is the bundled model, which the bundled samples are made for."""
    return model.name == DEMO and model.source.repository is None
