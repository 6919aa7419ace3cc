"""Prune once: vision-language models that do only the visual work a budget pays for.

    import yopo
    model = yopo.load("llava-1.5-7b")
    frontier = yopo.plan(model, samples, budgets=[0.25, 0.12])
    yopo.convert(model, frontier.at(0.12), "llava-pruned")
    print(yopo.evaluate("llava-pruned", samples).retention)

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from converters.errors import YopoError

if TYPE_CHECKING:
    from converters.adapters.adapt import Adaptation as Adaptation
    from converters.adapters.adapt import adapt as adapt
    from converters.api import Answer as Answer
    from converters.api import ask as ask
    from converters.api import bench as bench
    from converters.api import evaluate as evaluate
    from converters.api import export as export
    from converters.api import heal as heal
    from converters.api import verify as verify
    from converters.bench.benchmark import Benchmark as Benchmark
    from converters.bench.benchmark import BenchRequest as BenchRequest
    from converters.bench.exports import ExportBenchmark as ExportBenchmark
    from converters.bench.exports import ExportBenchRequest as ExportBenchRequest
    from converters.calibration.statistics import Statistics as Statistics
    from converters.checkpoint.push import Pushed as Pushed
    from converters.checkpoint.push import push as push
    from converters.conversion import Conversion as Conversion
    from converters.conversion import convert as convert
    from converters.data.footage import Video as Video
    from converters.data.footage import video as video
    from converters.data.sample import Sample as Sample
    from converters.evaluation.benchmarks import Evaluation as Evaluation
    from converters.evaluation.verification import Verification as Verification
    from converters.healing.heal import Healing as Healing
    from converters.inspection import Inspection as Inspection
    from converters.inspection import inspect as inspect
    from converters.model import Model as Model
    from converters.model import load as load
    from converters.pipeline.run import Planned as Planned
    from converters.pipeline.run import Run as Run
    from converters.pipeline.run import forecast as forecast
    from converters.pipeline.run import run as run
    from converters.planner import answer_changes as answer_changes
    from converters.planner import calibrate as calibrate
    from converters.planner import plan as plan
    from converters.planner import plan_from as plan_from
    from converters.planning.frontier import Frontier as Frontier
    from converters.planning.frontier import Point as Point
    from converters.planning.search.search import Effort as Effort
    from converters.progress import Message as Message
    from converters.progress import Progress as Progress
    from converters.progress import SearchProgress as SearchProgress
    from converters.runtime.plan import Grid as Grid
    from converters.runtime.plan import Plan as Plan
    from converters.runtime.registration import register as register

_MODULES = {
    "converters.adapters.adapt": ["Adaptation", "adapt"],
    "converters.api": ["Answer", "ask", "bench", "evaluate", "export", "heal", "verify"],
    "converters.bench.benchmark": ["Benchmark", "BenchRequest"],
    "converters.bench.exports": ["ExportBenchmark", "ExportBenchRequest"],
    "converters.calibration.statistics": ["Statistics"],
    "converters.conversion": ["Conversion", "convert"],
    "converters.data.footage": ["Video", "video"],
    "converters.data.sample": ["Sample"],
    "converters.evaluation.benchmarks": ["Evaluation"],
    "converters.evaluation.verification": ["Verification"],
    "converters.healing.heal": ["Healing"],
    "converters.inspection": ["Inspection", "inspect"],
    "converters.model": ["Model", "load"],
    "converters.planner": ["answer_changes", "calibrate", "plan", "plan_from"],
    "converters.checkpoint.push": ["Pushed", "push"],
    "converters.pipeline.run": ["Planned", "Run", "forecast", "run"],
    "converters.planning.frontier": ["Frontier", "Point"],
    "converters.planning.search.search": ["Effort"],
    "converters.progress": ["Message", "Progress", "SearchProgress"],
    "converters.runtime.plan": ["Grid", "Plan"],
    "converters.runtime.registration": ["register"],
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["YopoError", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'yopo' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
