"""From what was asked of `yopo bench` to models, plans, schedules, and their figures in tables and JSON."""

import json
import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from converters.bench.measure import Contender, Figures, Setting
from converters.errors import YopoError
from converters.families.llava import LLAVA
from converters.loading import Dtype, load, locate, pick_device, quiet
from converters.runtime.plan import Grid, Plan, Sizes, dense_plan, normalise

from .ui.costs import count_text

DEFAULT_BUDGETS = (0.25,)
DEFAULT_RECIPES = ("yopo", "interlaced")
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True)
class Asked:
    """The command's options."""

    model: str
    budgets: tuple[float, ...]
    recipes: tuple[str, ...]
    against: tuple[str, ...]
    random_weights: bool
    layers: int | None
    visual_tokens: tuple[int, ...]
    text_tokens: int
    batch_sizes: tuple[int, ...]
    rounds: int
    steps: int
    tower: bool
    compiled: bool
    threads: int | None
    device: str | None
    dtype: Dtype


@dataclass(frozen=True)
class Subject:
    """The dense model; of a converted one also the model itself and its plan."""

    dense: Any
    sizes: Sizes
    grids: tuple[Grid, ...]
    own: Any = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Run:
    """Figures of one setting and budget."""

    setting: Setting
    figures: list[Figures]

    @property
    def title(self) -> str:
        setting = self.setting
        return f"{setting.visual_tokens} visual + {setting.text_tokens} text tokens, batch {setting.batch}"


@dataclass
class Bench:
    """One benchmark: the machine's ceiling is measured first, runs follow."""

    asked: Asked
    done: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        quiet()
        import torch

        from converters.bench.ceiling import measure_ceiling

        _check(self.asked)
        if self.asked.compiled:
            logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # not where transformers' own code breaks a graph, on both sides
        if self.asked.threads:
            torch.set_num_threads(self.asked.threads)
        self.threads = torch.get_num_threads()
        self.subject = _subject(self.asked)
        sizes, dense = self.subject.sizes, self.subject.dense
        rows = sum(grid.tokens for grid in self.subject.grids) + self.asked.text_tokens
        self.ceiling = measure_ceiling(dense.device, dense.dtype, rows, sizes.hidden_size, sizes.intermediate_size)

    def ceiling_lines(self) -> Iterator[str]:
        """What this machine can do at best."""
        dense, sizes = self.subject.dense, self.subject.sizes
        threads = f", {self.threads} threads" if dense.device.type == "cpu" else ""
        yield f"{self.asked.model}: {sizes.num_hidden_layers} layers of {sizes.hidden_size}; {dense.device}, {_dtype(dense)}{threads}"
        rate, speed = count_text(self.ceiling.flops_per_second), count_text(self.ceiling.bytes_per_second)
        yield f"ceiling, measured: matrix products {rate}FLOP/s, memory {speed}B/s"

    def runs(self, say: Callable[[str], None]) -> Iterator[Run]:
        """Measure every visual grid, batch size and budget."""
        from converters.bench.measure import measure

        for grids in self._grids():
            for batch in self.asked.batch_sizes or (1,):
                tower = self.asked.tower and grids == self.subject.grids
                setting = Setting(grids, self.asked.text_tokens, batch, self.asked.rounds, self.asked.steps, tower, self.asked.compiled)
                for contenders in self._contenders(grids, say):
                    say(f"Timing {', '.join(one.name for one in contenders)} against dense ...")
                    figures = measure(self.subject.dense, contenders, setting, self.ceiling, self.subject.own)
                    self.done.append(Run(setting, figures))
                    yield self.done[-1]

    def _grids(self) -> list[tuple[Grid, ...]]:
        from converters.bench.models import visual_grids

        config = self.subject.dense.config.to_dict()
        return [visual_grids(config, tokens) for tokens in self.asked.visual_tokens] or [self.subject.grids]

    def _contenders(self, grids: tuple[Grid, ...], say: Callable[[str], None]) -> Iterator[list[Contender]]:
        """What is timed together: everything at one budget."""
        from converters.planning.cost import cost

        if self.subject.plan is not None:
            plan = replace(self.subject.plan, grids=grids)
            share, refitted = cost(plan).share, self.subject.own.model.language_model.refitted
            yield [Contender("plan", round(share, 4), plan, refitted=refitted), *self._pruners(grids, share, say)]
            return
        for budget in self.asked.budgets or DEFAULT_BUDGETS:
            yield [*self._plans(grids, budget), *(self._pruners(grids, budget, say) if budget < 1 else [])]

    def _plans(self, grids: tuple[Grid, ...], budget: float) -> Iterator[Contender]:
        """The recipes' plans; at a budget of 1 the plan that prunes nothing, which shows what the runtime itself costs."""
        from converters.planning.recipes import make_plan

        if budget == 1:
            yield Contender("everything", 1, plan=normalise(dense_plan(self.subject.sizes, grids)))
            return
        for recipe in self.asked.recipes or DEFAULT_RECIPES:
            yield Contender(recipe, budget, plan=make_plan(recipe, None, self.subject.sizes, grids, budget))

    def _pruners(self, grids: tuple[Grid, ...], budget: float, say: Callable[[str], None]) -> Iterator[Contender]:
        from converters.baselines.schedule import SCHEDULES, schedule

        for method in self.asked.against:
            try:
                yield Contender(method, round(budget, 4), schedule=schedule(method, self.subject.sizes, grids, budget))
            except YopoError as error:
                if method not in SCHEDULES:
                    raise
                say(f"Left out: {error.message}")


def _check(asked: Asked) -> None:
    """What can be known to be wrong before a model is made. Raises YopoError."""
    from converters.baselines.schedule import SCHEDULES
    from converters.planning.recipes import RECIPES

    for what, names, known in (("recipe", asked.recipes, RECIPES), ("token pruner", asked.against, SCHEDULES)):
        if unknown := [name for name in names if name not in known]:
            raise YopoError(f"There is no {what} {unknown[0]!r}.", f"There are: {', '.join(known)}.")
    for budget in asked.budgets:
        if not 0 < budget <= 1:
            raise YopoError(f"The budget is {budget:g}, not within 0 and 1.", "It is the kept share of dense visual FLOPs, such as 0.25.")


def _subject(asked: Asked) -> Subject:
    """The model that is timed. Raises YopoError."""
    subject = _random_subject(asked) if asked.random_weights else _saved_subject(asked)
    if asked.against and subject.dense.config.model_type != LLAVA.model_type:
        raise YopoError(f"Token pruners run over {LLAVA.name} alone.", "Leave --against out.")
    return subject


def _saved_subject(asked: Asked) -> Subject:
    if asked.layers:
        raise YopoError("--layers cuts a model with random weights.", "Add --random-weights.")
    source = locate(asked.model)
    from converters.bench.models import native
    from converters.checkpoint.reader import is_converted, open_checkpoint, open_converted, read_config

    if is_converted(read_config(source.path)):
        if asked.budgets or asked.recipes:
            raise YopoError(f"{asked.model} has a plan of its own.", "Leave --budget and --recipe out, or give the dense model.")
        opened = open_converted(source.path)
        own = load(source.path, asked.device, asked.dtype).model
        return Subject(native(own), opened.plan.sizes, opened.plan.grids[:1], own, opened.plan)
    checkpoint = open_checkpoint(source.path)
    return Subject(load(source.path, asked.device, asked.dtype).model, checkpoint.sizes, (checkpoint.grid,))


def _random_subject(asked: Asked) -> Subject:
    import torch

    from converters.bench.models import cut, published_config, random_model
    from converters.families import family_of

    config = published_config(asked.model)
    if config is None:
        from converters.loading import locate_config

        config = locate_config(asked.model)[1]
        if "yopo" in config:
            raise YopoError(f"{asked.model} is a converted model.", "Leave --random-weights out to time it.")
    family = family_of(config)
    config = cut(config, asked.layers)
    device = torch.device(pick_device(asked.device))
    # Without weights there is no checkpoint's own dtype: what models of this size are run in.
    kind = asked.dtype.value if asked.dtype is not Dtype.AUTO else "float32" if device.type == "cpu" else "bfloat16"
    return Subject(random_model(config, device, getattr(torch, kind)), family.sizes(config), (family.grid(config),))


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def bench_lines(run: Run) -> Iterator[Table]:
    """Tables: the prefill beside its FLOPs and its bound, rates and the vision tower, decoding, memory. Each fits 80 columns."""
    yield PREFILL, [_prefill_row(one) for one in run.figures]
    yield RATES, [_rate_row(one) for one in run.figures]
    yield DECODE, [_decode_row(one) for one in run.figures]
    notes: list[tuple[str, ...]] = [(_label(one), one.note) for one in run.figures if one.note not in ("", "as published")]
    if notes:
        yield ("moved", "from what is published"), notes


PREFILL = ("prefill", "visual", "total", "seconds", "of dense", "FLOPs/time", "of bound")
RATES = ("with vision tower", "TTFT s", "of dense", "spread", "tokens/s", "peak", "predicted")
DECODE = ("decoding", "TPOT ms", "of dense", "of bound", "KV predicted", "measured", "share")


def _prefill_row(one: Figures) -> tuple[str, ...]:
    time = one.prefill
    return (
        _label(one),
        f"{one.visual_share:.4f}",
        f"{one.total_share:.4f}",
        f"{time.seconds:.3f}",
        f"{time.ratio:.4f}",
        f"{one.efficiency:.3f}",
        f"{time.seconds / time.least:.2f}x" if time.least else "-",
    )


def _rate_row(one: Figures) -> tuple[str, ...]:
    first = one.ttft
    return (
        _label(one),
        f"{first.seconds:.3f}" if first else "-",
        f"{first.ratio:.4f}" if first else "-",
        f"{one.prefill.spread:.1%}",
        f"{one.tokens_per_second:.0f}",
        *("-" if size is None else count_text(size) + "B" for size in (one.peak_bytes, one.peak_predicted)),
    )


def _decode_row(one: Figures) -> tuple[str, ...]:
    step = one.decode
    return (
        _label(one),
        f"{1000 * step.seconds:.2f}" if step else "-",
        f"{step.ratio:.4f}" if step else "-",
        f"{step.seconds / step.least:.2f}x" if step and step.least else "-",
        count_text(one.kv_bytes_predicted) + "B",
        count_text(one.kv_bytes) + "B",
        f"{one.kv_share:.4f}",
    )


def _label(one: Figures) -> str:
    return one.name if one.budget is None else f"{one.name} {one.budget:g}"


def bench_record(bench: Bench) -> Iterator[str]:
    """Everything in one JSON line."""
    from converters.runtime.autotune import CHOICES

    asked, subject = bench.asked, bench.subject
    yield json.dumps(
        {
            "model": asked.model,
            "random_weights": asked.random_weights,
            "sizes": asdict(subject.sizes),
            "device": str(subject.dense.device),
            "device_name": _device_name(subject.dense.device),
            "dtype": _dtype(subject.dense),
            "threads": bench.threads,
            "versions": {name: version(name) for name in ("torch", "transformers", "yopo")},
            "ceiling": asdict(bench.ceiling),
            "compiled": asked.compiled,
            "chosen": CHOICES,
            "runs": [
                {"visual_tokens": run.setting.visual_tokens, **asdict(run.setting), "sides": [asdict(one) for one in run.figures]}
                for run in bench.done
            ],
        }
    )


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
