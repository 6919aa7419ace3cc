"""The bundled samples, where none are given."""

from .data import everyday
from .data.samples import BUNDLED, SamplesLike, is_bundled
from .errors import YopoError
from .loading import DEMO
from .model import Model
from .planning.frontier import Point
from .progress import Listener, Message, unheard
from .runtime.plan import Plan


def default_samples(model: Model, chosen: Plan | Point | float, progress: Listener = unheard) -> SamplesLike | None:
    """What to plan and fit on where no samples are given: the bundled ones.

    `chosen` is what `convert` gets: a `Plan`, and a budget of 1, need none; a frontier's point needs what it was planned on, None where
    that is no bundled set.
    """
    if isinstance(chosen, Plan) or chosen == 1:
        return None
    if isinstance(chosen, Point) and chosen.frontier is not None:
        return chosen.frontier.questions_from if is_bundled(chosen.frontier.questions_from) else None
    return bundled_samples_for(model, progress)


def bundled_samples_for(model: Model, progress: Listener) -> str:
    """The name of the bundled samples: the demo's shapes for the demo, for others everyday pictures, with a line that says so."""
    if is_demo(model):
        return BUNDLED
    progress(Message(f"{model.name} is calibrated on the bundled {everyday.NAME} pictures; --calibration takes questions of your own."))
    return everyday.NAME


def required_samples(samples: SamplesLike | None, model: Model, what: str) -> SamplesLike:
    """The samples; where there are none, for the demo the bundled ones. Raises YopoError for other models."""
    if samples is None and not is_demo(model):
        raise YopoError(f"{what} on samples, and there are none.", "Pass those that the plan was made on: --calibration FILE.jsonl")
    return BUNDLED if samples is None else samples


def is_demo(model: Model) -> bool:
    """Whether this is the bundled model, which the bundled samples are made for."""
    return model.name == DEMO and model.source.repository is None
