"""From samples to plans: calibrating, searching, and plans that others made."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .calibration.measuring import measured_statistics, save_statistics
from .calibration.statistics import Statistics
from .checkpoint.convert import check_plan
from .data.samples import SamplesLike, samples_of
from .data.split import SampleSplit
from .errors import YopoError
from .inspection import read_plan
from .model import Model, opened
from .planning.fitting import fit_compensations
from .planning.frontier import Frontier
from .planning.headmask import Cuts, config_headmask, headmask_plan, read_headmask
from .planning.measure.answers import answered
from .planning.measure.trials import Trials
from .planning.search.search import Effort, SearchReport, effort_of, search
from .processes import joined
from .progress import Listener, Message, SearchProgress, unheard
from .runtime.plan import Grid, Plan
from .serving.checks import ENGINES, KNOBS_WITHOUT, check_family

SAMPLES = 128  # that plans are made on, unless told otherwise
BUDGETS = (0.5, 0.25, 0.12, 0.06, 0.04)
DEFAULT_EFFORT = "thorough"
HEADMASK, OWN_PLAN = ".npy", "config"


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
        statistics = Statistics.load(file).of_model(model.fingerprint)
        progress(Message(f"Using the {statistics.samples} samples' statistics in {file}: nothing is calibrated."))
        return statistics
    if file is not None and not file.parent.is_dir():
        raise YopoError(f"The folder {file.parent} does not exist.", "Statistics are written there: make it first.")
    chosen = samples_of(samples, answers=False, count=count, seed=seed)
    statistics = measured_statistics(model.loaded, model.name, model.fingerprint, chosen, progress)
    statistics = replace(statistics, questions_from=chosen.file_name, seed=seed)
    if file is not None and joined().first:
        save_statistics(statistics, file)
    return statistics


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
    effort: Effort | str | float = DEFAULT_EFFORT,
    served_by: str | None = None,
    state: Path | None = None,
    progress: Listener = unheard,
) -> Frontier:
    """Search for the plans that change a dense model's answers least: one search, the best plan for every budget.

    `budgets` are shares of the dense visual FLOPs, within 0..1, counted on `grid` (default: that of the samples' median picture).
    `count` of the samples, drawn with `seed`, are planned on; answers in them are not used. Without `statistics` the model is
    calibrated on the same samples. `refit`: plans are measured with K and V of visual tokens refitted, as `convert` then does.
    `effort` is quick, usual or thorough, a number of forward passes of the questions, or an `Effort`.
    `served_by` vllm: plans that its plugin serves. `state` is a file with which an interrupted search goes on where it was. `progress` gets
    `SearchProgress`. Raises YopoError.
    """
    without = knobs_without(served_by)
    model = opened(model).dense()
    if served_by is not None:
        check_family(model.checkpoint.family)
    split = SampleSplit.of(samples, count, seed)
    known = statistics_of(model, statistics, split, seed, progress)
    loaded, processes = model.loaded, joined()
    if state is not None and state.exists():
        progress(Message(f"Going on with the search whose measurements {state} holds."))
    effort = effort if isinstance(effort, Effort) else effort_of(effort, known.layers, len(set(budgets)))
    frontier = search(
        loaded.model,
        split.batches(loaded.processor, processes=processes),
        known,
        budgets,
        grids=None if grid is None else (grid,),
        seed=seed,
        questions_from=split.samples.file_name,
        effort=replace(effort, compensated=refit, without=(*effort.without, *without)),
        state=state,
        progress=lambda report: progress(_search_progress(report)),
        processes=processes,
    )
    return replace(frontier, split=split)


def knobs_without(engine: str | None) -> tuple[str, ...]:
    """Knobs of the search to be left alone for an engine. Raises YopoError for an unknown one."""
    if engine is None:
        return ()
    if engine not in ENGINES:
        raise YopoError(f"No plans are made for {engine!r}.", f"There are: {', '.join(ENGINES)}.")
    return KNOBS_WITHOUT


def statistics_of(model: Model, given: Statistics | Path | None, split: SampleSplit, seed: int, progress: Listener) -> Statistics:
    """Those that were given, or are in the file; else measured now, and kept in the file if one was named."""
    if isinstance(given, Statistics):
        return given.of_model(model.fingerprint)
    return calibrate(model, split.chosen(), seed=seed, file=given, progress=progress)


def _search_progress(report: SearchReport) -> SearchProgress:
    return SearchProgress(report.share, report.logit_drift, report.forwards, report.allowed, report.memory_bytes, report.disk_bytes)


def answer_changes(model: Model | str | Path, frontier: Frontier, *, progress: Listener = unheard) -> dict[float, float]:
    """By budget, the share of unseen samples (those that `plan` was given and did not use) that its plan answers differently.

    Raises YopoError for a frontier that was read from a file, and where all samples were planned on.
    """
    if frontier.split is None:
        raise YopoError("The samples of this frontier are not at hand.", "Use the frontier that `plan` gave.")
    frontier.split.check_unseen()
    loaded, processes = opened(model).dense().loaded, joined()
    progress(Message(f"Asking {frontier.split.unseen} questions that the search did not see."))
    trials = Trials(
        loaded.model,
        (
            None if batch is None else answered(loaded.model, batch)
            for batch in frontier.split.batches(loaded.processor, unseen=True, processes=processes)
        ),
        frontier.path[0].plan,
        processes=processes,
    )

    def changed(plan: Plan) -> float:
        fitting = frontier.compensated and frontier.split
        batches = fitting.batches(loaded.processor, processes=processes) if fitting else None
        refits = None if batches is None else fit_compensations(loaded.model, batches, plan, processes)
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
    return check_plan(headmask_plan(mask, cuts, sizes, model.checkpoint.grids), sizes)


def smallest_budget(changes: Mapping[float, float], most: float) -> float:
    """The smallest budget of those that change at most this share of the answers (`answer_changes`). Raises YopoError for none."""
    if within := [budget for budget, share in changes.items() if share <= most]:
        return min(within)
    raise YopoError(
        f"No budget changes at most {most:.2%} of the unseen answers; the least is {min(changes.values()):.2%}.",
        "Plan for larger budgets, or allow a larger --max-drop.",
    )
