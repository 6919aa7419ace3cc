"""A benchmark from beginning to end: from what was asked for to models, plans, schedules, and their figures."""

import logging
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from ..baselines.pictures import refusals
from ..baselines.schedule import SCHEDULES, schedule
from ..checkpoint.config import is_converted, read_config
from ..checkpoint.reader import open_checkpoint, open_converted
from ..errors import YopoError
from ..families import family_of
from ..loading import Dtype, load, locate, locate_config, pick_device, quiet
from ..planning.cost import cost
from ..planning.recipes import RECIPES, make_plan
from ..progress import Listener, Message
from ..runtime.autotune import CHOICES
from ..runtime.plan import Grid, Plan, Sizes, dense_plan, normalise
from .ceiling import Ceiling, measure_ceiling
from .measure import Contender, Figures, Setting, measure
from .models import cut, is_tiled, native, published_config, random_model, visual_grids

DEFAULT_BUDGETS = (0.25,)
DEFAULT_RECIPES = ("yopo", "interlaced")


@dataclass(frozen=True)
class BenchRequest:
    """What is to be timed: a model, its plans (by budget and recipe) and token pruners to compare with; and how.

    `random_weights` takes a model's sizes alone, of which `layers` may be cut; `visual_tokens` stand in for the model's own grid;
    `tower`: the vision tower too; `compiled`: under torch.compile; `threads`: of the CPU, None for PyTorch's number.
    """

    model: str
    budgets: tuple[float, ...] = ()
    recipes: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    random_weights: bool = False
    layers: int | None = None
    visual_tokens: tuple[int, ...] = ()
    text_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1,)
    rounds: int = 5
    steps: int = 8
    tower: bool = True
    compiled: bool = False
    threads: int | None = None
    device: str | None = None
    dtype: Dtype = Dtype.AUTO


@dataclass(frozen=True)
class BenchmarkModel:
    """The dense model; of a converted one also the model itself and its plan."""

    dense: Any
    sizes: Sizes
    grids: tuple[Grid, ...]
    pruned: Any = None
    plan: Plan | None = None


@dataclass(frozen=True)
class BenchmarkRun:
    """Figures of one setting and budget."""

    setting: Setting
    figures: list[Figures]

    @property
    def title(self) -> str:
        setting = self.setting
        return f"{setting.visual_tokens} visual + {setting.text_tokens} text tokens, batch {setting.batch}"


@dataclass(frozen=True)
class Benchmark:
    """What was timed, where, and the figures of every run. `chosen` are the kernels that the runtime took."""

    request: BenchRequest
    sizes: Sizes
    device: str
    device_name: str
    dtype: str
    threads: int
    ceiling: Ceiling
    chosen: Any
    runs: tuple[BenchmarkRun, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object, with the versions that ran."""
        return {
            "model": self.request.model,
            "random_weights": self.request.random_weights,
            "sizes": asdict(self.sizes),
            "device": self.device,
            "device_name": self.device_name,
            "dtype": self.dtype,
            "threads": self.threads,
            "versions": {name: version(name) for name in ("torch", "transformers", "yopo")},
            "ceiling": asdict(self.ceiling),
            "compiled": self.request.compiled,
            "chosen": self.chosen,
            "runs": [
                {"visual_tokens": run.setting.visual_tokens, **asdict(run.setting), "sides": [asdict(one) for one in run.figures]}
                for run in self.runs
            ],
        }


class Bench:
    """One benchmark under way: the machine's ceiling is measured first, runs follow."""

    def __init__(self, request: BenchRequest) -> None:
        quiet()
        _check(request)
        if request.compiled:
            logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # not where transformers' own code breaks a graph, on both sides
        if request.threads:
            torch.set_num_threads(request.threads)
        self.request = request
        self.subject = _subject(request)
        sizes, dense = self.subject.sizes, self.subject.dense
        rows = sum(grid.tokens for grid in self.subject.grids) + request.text_tokens
        self.ceiling = measure_ceiling(dense.device, dense.dtype, rows, sizes.hidden_size, sizes.intermediate_size)

    def result(self, runs: Iterable[BenchmarkRun]) -> Benchmark:
        """The machine and the model, with these runs."""
        dense = self.subject.dense
        where = str(dense.device), _device_name(dense.device), str(dense.dtype).removeprefix("torch."), torch.get_num_threads()
        return Benchmark(self.request, self.subject.sizes, *where, self.ceiling, CHOICES, tuple(runs))

    def runs(self, progress: Listener) -> Iterator[BenchmarkRun]:
        """Measure every visual grid, batch size and budget."""
        for grids in self._grids():
            for batch in self.request.batch_sizes or (1,):
                tower = self.request.tower and grids == self.subject.grids
                request = self.request
                setting = Setting(grids, request.text_tokens, batch, request.rounds, request.steps, tower, request.compiled)
                for contenders in self._contenders(grids, progress):
                    progress(Message(f"Timing {', '.join(one.name for one in contenders)} against dense ..."))
                    yield BenchmarkRun(setting, measure(self.subject.dense, contenders, setting, self.ceiling, self.subject.pruned))

    def _grids(self) -> list[tuple[Grid, ...]]:
        config = self.subject.dense.config.to_dict()
        return [visual_grids(config, tokens) for tokens in self.request.visual_tokens] or [self.subject.grids]

    def _contenders(self, grids: tuple[Grid, ...], progress: Listener) -> Iterator[list[Contender]]:
        """What is timed together: everything at one budget."""
        if self.subject.plan is not None:
            plan = replace(self.subject.plan, grids=grids)
            share, refitted = cost(plan).share, self.subject.pruned.get_decoder().refitted
            yield [Contender("plan", round(share, 4), plan, refitted=refitted), *self._pruners(grids, share, progress)]
            return
        for budget in self.request.budgets or DEFAULT_BUDGETS:
            yield [*self._plans(grids, budget), *(self._pruners(grids, budget, progress) if budget < 1 else [])]

    def _plans(self, grids: tuple[Grid, ...], budget: float) -> Iterator[Contender]:
        """The recipes' plans; at a budget of 1 the plan that prunes nothing, which shows what the runtime itself costs."""
        if budget == 1:
            yield Contender("everything", 1, plan=normalise(dense_plan(self.subject.sizes, grids)))
            return
        for recipe in self.request.recipes or DEFAULT_RECIPES:
            yield Contender(recipe, budget, plan=make_plan(recipe, None, self.subject.sizes, grids, budget))

    def _pruners(self, grids: tuple[Grid, ...], budget: float, progress: Listener) -> Iterator[Contender]:
        for method in self.request.against:
            try:
                yield Contender(method, round(budget, 4), schedule=schedule(method, self.subject.sizes, grids, budget))
            except YopoError as error:
                if method not in SCHEDULES:
                    raise
                progress(Message(f"Left out: {error.message}"))


def _check(request: BenchRequest) -> None:
    """What can be known to be wrong before a model is made. Raises YopoError."""
    for what, names, known in (("recipe", request.recipes, RECIPES), ("token pruner", request.against, SCHEDULES)):
        if unknown := [name for name in names if name not in known]:
            raise YopoError(f"There is no {what} {unknown[0]!r}.", f"There are: {', '.join(known)}.")
    for budget in request.budgets:
        if not 0 < budget <= 1:
            raise YopoError(f"The budget is {budget:g}, not within 0 and 1.", "It is the kept share of dense visual FLOPs, such as 0.25.")


def _subject(request: BenchRequest) -> BenchmarkModel:
    """The model that is timed. Raises YopoError."""
    subject = _random_subject(request) if request.random_weights else _saved_subject(request)
    for _, reason in refusals(subject.dense, request.against):
        raise YopoError(reason, "Leave it out of --against.")
    config = subject.dense.config.to_dict()
    if "downsample" in request.against and (family_of(config).kinds is not None or is_tiled(config)):
        raise YopoError("Downsampling is timed where all pictures have one size.", "Leave it out of --against.")
    return subject


def _saved_subject(request: BenchRequest) -> BenchmarkModel:
    if request.layers:
        raise YopoError("--layers cuts a model with random weights.", "Add --random-weights.")
    source = locate(request.model)
    if is_converted(read_config(source.path)):
        if request.budgets or request.recipes:
            raise YopoError(f"{request.model} has a plan of its own.", "Leave --budget and --recipe out, or give the dense model.")
        opened = open_converted(source.path)
        pruned = load(source.path, request.device, request.dtype).model
        return BenchmarkModel(native(pruned), opened.plan.sizes, opened.family.first_picture(opened.plan.grids), pruned, opened.plan)
    checkpoint = open_checkpoint(source.path)
    return BenchmarkModel(load(source.path, request.device, request.dtype).model, checkpoint.sizes, checkpoint.grids)


def _random_subject(request: BenchRequest) -> BenchmarkModel:
    config = published_config(request.model)
    if config is None:
        config = locate_config(request.model)[1]
        if "yopo" in config:
            raise YopoError(f"{request.model} is a converted model.", "Leave --random-weights out to time it.")
    family = family_of(config)
    config = cut(config, request.layers)
    device = torch.device(pick_device(request.device))
    # Without weights there is no checkpoint's own dtype: what models of this size are run in.
    kind = request.dtype.value if request.dtype is not Dtype.AUTO else "float32" if device.type == "cpu" else "bfloat16"
    return BenchmarkModel(random_model(config, device, getattr(torch, kind)), family.sizes(config), family.grids(config))


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()
