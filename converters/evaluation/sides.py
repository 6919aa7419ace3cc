"""What is asked the same questions: the dense model, the pruned one, plans of other recipes, and token pruners, at equal visual FLOPs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..baselines.schedule import SCHEDULES, Schedule, schedule
from ..baselines.smaller import Smaller
from ..data.pictures import Picture
from ..errors import YopoError
from ..families import family_of
from ..loading import Loaded
from ..model import Model
from ..planning.cost import cost
from ..planning.recipes import RECIPES, make_plan
from ..runtime.plan import Grid, Plan, Sizes
from .answering import generate
from .protocols import Encoder
from .task import Question

REFITTED = ("interlaced",)
"""Recipes whose visual K and V are refitted, as `yopo convert` does by default."""


@dataclass(frozen=True)
class Side:
    """`answer(inputs, max_new_tokens)` gives a batch's answers; `facts` (JSON-ready) say what it executes."""

    name: str
    answer: Callable[[Any, int], list[str]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Sides that share a model, by name; `open()` makes them when they are first needed. `encode` None: the protocol's own."""

    names: tuple[str, ...]
    open: Callable[[], Sequence[Side]]
    encode: Encoder | None = None


@dataclass(frozen=True)
class EvaluatedModel:
    """What is evaluated: a loaded model, its plan (None of a dense one), and where visual tokens lie. `dense` may answer too or not."""

    loaded: Loaded
    sizes: Sizes
    grids: tuple[Grid, ...]
    plan: Plan | None
    dense: bool = True

    @property
    def share(self) -> float | None:
        """Its visual FLOPs as a share of the dense model's."""
        return None if self.plan is None else cost(self.plan).share


def subject_of(model: Model) -> EvaluatedModel:
    """A model as what is evaluated."""
    dense = model.missing_dense_side() is None
    if (plan := model.plan) is not None:
        return EvaluatedModel(model.loaded, plan.sizes, plan.grids, plan, dense)
    family = family_of(model.config)
    return EvaluatedModel(model.loaded, family.sizes(model.config), family.grids(model.config), None)


def model_group(subject: EvaluatedModel) -> Group:
    """The dense model and, where there is a plan, the pruned one."""
    loaded = subject.loaded

    def dense(inputs: Any, most: int) -> list[str]:
        with loaded.model.dense() if loaded.pruned else nullcontext():
            return generate(loaded, inputs, most)

    path = {"path": loaded.path_report()}
    sides = [Side("dense", dense, {"visual_share": 1.0} | ({} if loaded.pruned else path))] if subject.dense else []
    if loaded.pruned:
        facts = {"visual_share": subject.share} | path
        sides.append(Side("pruned", lambda inputs, most: generate(loaded, inputs, most), facts))
    return Group(tuple(side.name for side in sides), lambda: sides)


def check_names(pruners: Iterable[str], recipes: Iterable[str]) -> None:
    """Raise YopoError for a name that stands for nothing."""
    for what, names, known in (("token pruner", pruners, tuple(SCHEDULES)), ("recipe", recipes, tuple(RECIPES))):
        if unknown := [name for name in names if name not in known]:
            raise YopoError(f"There is no {what} {unknown[0]!r}.", f"There are: {', '.join(known)}.")


def pruner_groups(
    subject: EvaluatedModel, dense: Any, methods: Sequence[str], budget: float, encode: Encoder, seed: int = 0
) -> Iterator[Group]:
    """Token pruners over `dense`, transformers' own model, each sample at most at `budget` of its visual FLOPs.

    What the model or the budget leaves out says why. Raises YopoError where that is all.
    """
    from ..baselines.pictures import refusals

    reasons = dict(refusals(dense, tuple(methods)))
    for method in methods:
        if method not in reasons:
            try:
                schedule(method, subject.sizes, subject.grids, budget)
            except YopoError as error:
                reasons[method] = error.message
    if reasons.keys() == set(methods):
        raise YopoError(next(iter(reasons.values())), "Leave --against out.")
    smaller = Smaller.of(subject.loaded.processor, subject.sizes, subject.grids[0], budget)
    apart = [method for method in methods if method == "downsample" and smaller is not None and method not in reasons]
    together = [method for method in methods if method not in reasons and method not in apart]
    if together:
        yield Group(tuple(together), lambda: [_pruner(subject, dense, method, budget, seed) for method in together])
    if apart and smaller is not None:
        yield Group(tuple(apart), lambda: [_downsampled(subject, dense, smaller)], partial(_smaller, smaller, encode))
    for method, reason in reasons.items():
        yield Group((method,), partial(_leave_out, reason))


def _leave_out(reason: str) -> Sequence[Side]:
    raise YopoError(reason)


def _pruner(subject: EvaluatedModel, dense: Any, method: str, budget: float, seed: int) -> Side:
    from ..baselines.forward import generate_each

    made = schedule(method, subject.sizes, subject.grids, budget)

    def of(grids: tuple[Grid, ...]) -> Schedule:
        """Of a picture too small for the budget one token stays."""
        try:
            return schedule(method, subject.sizes, grids, budget) if grids else Schedule(method, subject.sizes, (), 0)
        except YopoError:
            return Schedule(method, subject.sizes, grids, len(grids), coarse=Grid(1, 1) if method == "downsample" else None)

    def answer(inputs: Any, most: int) -> list[str]:
        placed = inputs.to(subject.loaded.device, dtype=dense.dtype)
        return _words(subject, generate_each(dense, placed, of, most, seed))

    return Side(method, answer, {"visual_share": made.share, "tokens_by_layer": list(made.by_layer), "setting": made.note})


def _downsampled(subject: EvaluatedModel, dense: Any, smaller: Smaller) -> Side:
    from ..baselines.forward import generate as tokens_of

    def answer(inputs: Any, most: int) -> list[str]:
        where: dict[str, Any] = {"dtype": dense.dtype}
        tokens = [tokens_of(dense, one.to(subject.loaded.device, **where), made, most)[0] for one, made in inputs]
        return _words(subject, tokens)

    return Side("downsample", answer, {"visual_share": smaller.share, "setting": f"at most, by {smaller.note}"})


def _smaller(smaller: Smaller, encode: Encoder, processor: Any, questions: Sequence[Question]) -> list[Any]:
    """Each question's inputs from pictures that the processor made smaller, with what enters of them."""

    def one(question: Question) -> Any:
        images = [image.open() for image in question.images]
        seen = replace(
            question, images=tuple(Picture(one.place, partial(_same, image)) for one, image in zip(question.images, images, strict=True))
        )
        return smaller.encoded([(image.height, image.width) for image in images], lambda: encode(processor, [seen]))

    return [one(question) for question in questions]


def _same(image: Any) -> Any:
    return image


def _words(subject: EvaluatedModel, tokens: Iterable[Any]) -> list[str]:
    return [text.strip() for text in subject.loaded.processor.batch_decode(list(tokens), skip_special_tokens=True)]


Questions = Callable[[], Iterator[Any]]
"""Processor outputs to calibrate on, anew at every call: with answers for statistics, without for refits."""


def recipe_groups(
    subject: EvaluatedModel, dense: Any, recipes: Iterable[str], budget: float, answered: Questions, asked: Questions
) -> Iterator[Group]:
    """One group for each recipe, whose model is made when it is opened: plans are calibrated on the dense model's samples."""
    measured: list[Any] = []

    def statistics() -> Any:
        from ..calibration.statistics import calibrate

        if not measured:
            measured.append(calibrate(dense, answered(), fingerprint="in memory"))
        return measured[0]

    def opened(recipe: str) -> list[Side]:
        from .planned import planned

        plan = make_plan(recipe, statistics(), subject.sizes, subject.grids, budget)
        model = planned(dense, plan, asked if recipe in REFITTED else None)
        loaded = Loaded(model, subject.loaded.processor, subject.loaded.device, subject.loaded.dtype)
        facts = {"visual_share": cost(plan).share, "visual_depth": plan.visual_depth, "refitted": recipe in REFITTED}
        return [Side(recipe, lambda inputs, most: generate(loaded, inputs, most), facts)]

    for recipe in recipes:
        yield Group((recipe,), lambda recipe=recipe: opened(recipe))  # type: ignore[misc]
