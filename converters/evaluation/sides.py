"""What is asked the same questions: the dense model, the pruned one, plans of other recipes, and token pruners, at equal visual FLOPs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from ..baselines.schedule import SCHEDULES, schedule
from ..errors import YopoError
from ..families import family_of
from ..loading import Loaded
from ..model import Model
from ..planning.cost import cost
from ..planning.recipes import RECIPES, make_plan
from ..runtime.plan import Grid, Plan, Sizes
from .answering import generate

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
    """Sides that share a model, by name; `open()` makes them when they are first needed."""

    names: tuple[str, ...]
    open: Callable[[], Sequence[Side]]


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
        return EvaluatedModel(model.loaded, plan.sizes, model.checkpoint.family.first_picture(plan.grids), plan, dense)
    family = family_of(model.config)
    return EvaluatedModel(model.loaded, family.sizes(model.config), family.grids(model.config), None)


def model_group(subject: EvaluatedModel) -> Group:
    """The dense model and, where there is a plan, the pruned one."""
    loaded = subject.loaded

    def dense(inputs: Any, most: int) -> list[str]:
        with loaded.model.dense() if loaded.pruned else nullcontext():
            return generate(loaded, inputs, most)

    sides = [Side("dense", dense, {"visual_share": 1.0})] if subject.dense else []
    if loaded.pruned:
        facts = {"visual_share": subject.share, "path": loaded.path_report()}
        sides.append(Side("pruned", lambda inputs, most: generate(loaded, inputs, most), facts))
    return Group(tuple(side.name for side in sides), lambda: sides)


def check_names(pruners: Iterable[str], recipes: Iterable[str]) -> None:
    """Raise YopoError for a name that stands for nothing."""
    for what, names, known in (("token pruner", pruners, tuple(SCHEDULES)), ("recipe", recipes, tuple(RECIPES))):
        if unknown := [name for name in names if name not in known]:
            raise YopoError(f"There is no {what} {unknown[0]!r}.", f"There are: {', '.join(known)}.")


def pruner_group(subject: EvaluatedModel, dense: Any, methods: Sequence[str], budget: float, seed: int = 0) -> Group:
    """Token pruners over `dense`, transformers' own model, at most `budget` of its visual FLOPs. Raises YopoError for another family."""
    from ..baselines.forward import generated
    from ..baselines.pictures import check_model

    check_model(dense.config)

    def side(method: str) -> Side:
        made = schedule(method, subject.sizes, subject.grids, budget)

        def answer(inputs: Any, most: int) -> list[str]:
            placed = inputs.to(subject.loaded.device, dtype=dense.dtype)
            decode = subject.loaded.processor.batch_decode
            found = generated(dense, placed, made, budget, most, seed)
            return [text.strip() for tokens in found for text in decode(tokens, skip_special_tokens=True)]

        return Side(method, answer, {"visual_share": made.share, "tokens_by_layer": list(made.by_layer), "setting": made.note})

    return Group(tuple(methods), lambda: [side(method) for method in methods])


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
