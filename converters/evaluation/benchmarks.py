"""One evaluation: tasks, a protocol, and all sides on the same questions; with `save`, it goes on where it was killed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

from ..data import everyday
from ..data.prompts import check_videos, encode_samples
from ..data.samples import BUNDLED, SamplesLike, batches, samples_of
from ..errors import YopoError
from ..export.loading import Runtime
from ..loading import DEMO, Loaded
from ..model import Model
from ..processes import joined
from ..progress import Listener, Message, unheard
from .asking import ask
from .protocols import encoder
from .record import Record
from .results import lines, results
from .samples_task import samples_task
from .sides import EvaluatedModel, Group, check_names, model_group, pruner_groups, recipe_groups, subject_of
from .sources import Asked, ask_for
from .tasks import TASKS
from .tasks.wording import CHECKPOINT

CALIBRATION_BATCH = 4
COMMA = re.compile(r",(?=[\w-]+(?:[@=,]|$))")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate. `tasks` are names of benchmarks (`NAME[@REVISION][=PLACE]`), or samples: files, bundled sets, lists.

    `against` are token pruners and `recipes` are plans to compare with, all at `budget` of the dense visual FLOPs, by default the
    model's own; recipes are calibrated on `calibration` (a file; None: the bundled samples). `max_new_tokens` None: each task's own.
    `for_retention` refuses a model of which no retention can be measured.
    """

    tasks: tuple[SamplesLike, ...]
    protocol: str = CHECKPOINT
    samples: int | None = None
    seed: int = 0
    batch_size: int = 16
    max_new_tokens: int | None = None
    against: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    budget: float | None = None
    calibration: Path | None = None
    calibration_samples: int = 128
    save: Path | None = None
    for_retention: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What came out of one task, overall or of one kind of question: `sides` as `results.results` has them, JSON-ready."""

    name: str
    sides: Mapping[str, Any]
    kinds: "Mapping[str, Evaluation]"

    @classmethod
    def of(cls, name: str, task: Mapping[str, Any]) -> "Evaluation":
        return cls(name, task["sides"], {kind: cls(kind, sides, {}) for kind, sides in task["kinds"].items()})

    @property
    def dense(self) -> float | None:
        """The dense model's figure, of samples the percentage of right answers; None where there is no such model."""
        return self.figure("dense")

    @property
    def pruned(self) -> float | None:
        """The pruned model's."""
        return self.figure("pruned")

    @property
    def retention(self) -> float | None:
        """The pruned model's figure over the dense one's; None where the dense model has nothing right, or one of them is missing."""
        kept = self.sides.get("pruned", {}).get("retention")
        return None if kept is None else float(kept["value"])

    def figure(self, side: str) -> float | None:
        """A side's headline."""
        figures = self.sides.get(side, {}).get("figures", {"": {"value": None}})
        value: float | None = next(iter(figures.values()))["value"]
        return value

    def to_json(self) -> dict[str, Any]:
        """The sides, and those of every kind, as the command's JSON has them."""
        return {"sides": dict(self.sides), "kinds": {kind: dict(one.sides) for kind, one in self.kinds.items()}}


def base_name(model: Model) -> str:
    """The dense model's Hub name, else its short one."""
    base = model.config.get("yopo", {}).get("base", {})
    return str(base.get("repository") or base.get("name") or model.source.repository or model.name)


def evaluate_benchmarks(model: Model, request: EvaluationRequest, progress: Listener = unheard) -> dict[str, Any]:
    """Ask everything and return what came out, JSON-ready (`results.results` for each task). Raises YopoError."""
    check_names(request.against, request.recipes)
    usual = BUNDLED if base_name(model) == DEMO else everyday.NAME
    request = replace(request, calibration=request.calibration or Path(usual))
    missing = model.missing_dense_side()
    if request.for_retention:
        _check_retention(model, missing)
    if missing:
        progress(Message(f"{missing} Evaluate the base model beside it."))
    asked = asked_by(request)
    _check_compared(model, request, asked)
    subject = subject_of(model)
    progress(Message(f"Path: {subject.loaded.path_report()}"))
    return evaluate_sides(model, request, asked, subject, list(_groups(request, subject)), progress)


def _check_compared(model: Model, request: EvaluationRequest, asked: Sequence[Asked]) -> None:
    if model.runtime is Runtime.ONNX and (request.against or request.recipes):
        raise YopoError("Token pruners and recipes run in PyTorch.", "Leave --runtime onnx out, or --against and --recipe.")
    if model.device_map is not None and (request.against or request.recipes):
        model.on_one_device("What is compared with")
    if "downsample" in request.against and any(question.videos for one in asked for question in one.questions):
        raise YopoError("downsample makes pictures smaller, and there are questions about videos.", "Leave it out of --against.")


def _check_retention(model: Model, missing: str | None) -> None:
    if not model.pruned:
        raise YopoError(f"{model.name} is dense: it has no retention to demand.", "Leave --min-retention out, or give a converted model.")
    if missing:
        raise YopoError(missing, "Leave --min-retention out, and evaluate the base model beside it.")


def evaluate_sides(
    model: Model,
    request: EvaluationRequest,
    asked: Sequence[Asked],
    subject: EvaluatedModel,
    groups: Sequence[Group],
    progress: Listener = unheard,
) -> dict[str, Any]:
    """The same with sides of one's choice, in place of those that the request names."""
    encode, processes = encoder(request.protocol), joined()
    for question in (question for one in asked for question in one.questions):
        check_videos(subject.loaded.processor, len(question.videos), f"Question {question.id}")
    lengths = {one.task.name: request.max_new_tokens or one.task.max_new_tokens[request.protocol] for one in asked}
    settings = _settings(request, subject, model.name, asked, lengths, [name for group in groups for name in group.names])
    record = Record.open(request.save, settings, processes.rank)
    ask(asked, groups, encode, subject.loaded.processor, lengths, request.batch_size, record, processes, progress)
    base = base_name(model)
    tasks = {one.task.name: results(one, record, base) for one in asked}
    evaluation = {**settings, "base": base, "executed": dict(record.facts), "tasks": tasks, "yopo": version("yopo")}
    if processes.first:
        record.finish((line for one in asked for line in lines(one, record)), evaluation)
    return evaluation


def names_of(text: str) -> tuple[str, ...]:
    """The tasks of a list with commas; a file's name, which may have one, stays whole."""
    parts = tuple(COMMA.split(text))
    return parts if all(is_benchmark(part) for part in parts) else (text,)


def is_benchmark(task: SamplesLike) -> TypeGuard[str]:
    """Whether a task is a published benchmark, not a file, a list or a bundled set."""
    return isinstance(task, str) and re.split("[@=]", task)[0] in TASKS


def asked_by(request: EvaluationRequest) -> list[Asked]:
    """Every task's questions. Raises YopoError where two tasks have one name."""
    asked = []
    for given in request.tasks:
        drawn = request.samples, request.seed
        asked.append(ask_for(given, request.protocol, *drawn) if is_benchmark(given) else samples_task(given, *drawn))
    names = [one.task.name for one in asked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise YopoError(f"Two tasks are named {', '.join(twice)}.", "A task is named after its file: rename one.")
    return asked


def _groups(request: EvaluationRequest, subject: EvaluatedModel) -> Iterator[Group]:
    """The sides; transformers' own dense model, which some of them need, is made before the loaded one first runs."""
    compared = request.against or request.recipes
    dense, budget = (_plain(subject.loaded), _budget(request, subject)) if compared else (None, 1.0)
    yield model_group(subject)
    if request.against:
        yield from pruner_groups(subject, dense, request.against, budget, encoder(request.protocol), request.seed)
    if request.recipes:
        answered, asked = (partial(calibration_inputs, request, subject.loaded, answers=answers) for answers in (True, False))
        yield from recipe_groups(subject, dense, request.recipes, budget, answered, asked)


def _budget(request: EvaluationRequest, subject: EvaluatedModel) -> float:
    budget = subject.share if request.budget is None else request.budget
    if budget is None:
        raise YopoError("A dense model has no budget to compare at.", "Give --budget, or a converted model.")
    if not 0 < budget < 1:
        raise YopoError(f"The budget is {budget:g}, not between 0 and 1.", "It is the kept share of dense visual FLOPs, such as 0.25.")
    return budget


def _plain(loaded: Loaded) -> Any:
    """Transformers' own dense model over the loaded one's weights."""
    from ..bench.models import native

    return native(loaded.model) if loaded.pruned else loaded.model


def calibration_inputs(request: EvaluationRequest, loaded: Loaded, *, answers: bool) -> Iterator[Any]:
    """Processor outputs of the questions that recipes are calibrated on."""
    samples = samples_of(request.calibration or BUNDLED, answers=False, count=request.calibration_samples, seed=request.seed)
    for batch in batches(samples.stream(), CALIBRATION_BATCH):
        yield encode_samples(loaded.processor, batch, answers=answers)


def _settings(
    request: EvaluationRequest, subject: EvaluatedModel, model: str, asked: Sequence[Asked], lengths: dict[str, int], sides: list[str]
) -> dict[str, Any]:
    """What answers depend on: a saved run goes on only where all of it is the same."""
    compared = bool(request.against or request.recipes)
    return {
        "model": model,
        "plan_share": subject.share,
        "protocol": request.protocol,
        "sides": sides,
        "budget": _budget(request, subject) if compared else None,
        "calibration": [str(request.calibration or BUNDLED), request.calibration_samples] if request.recipes else None,
        "origins": {one.task.name: dict(one.origin) for one in asked},
        "samples": request.samples,
        "seed": request.seed,
        "batch_size": request.batch_size,
        "max_new_tokens": lengths,
        "device": subject.loaded.device,
        "dtype": subject.loaded.dtype,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
