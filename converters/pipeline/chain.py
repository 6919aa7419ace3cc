"""The steps of a pipeline, in order: statistics, plans, and for each model converting, healing, exporting and evaluating."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import api
from ..bundled import default_samples
from ..data.split import SampleSplit
from ..evaluation.benchmarks import EvaluationRequest, evaluate_benchmarks
from ..healing.heal import BUNDLED_SAMPLES
from ..model import load
from ..plan_choice import SEARCHED
from ..planner import DEFAULT_EFFORT, SAMPLES, plan_from
from ..planning.cost import REFERENCE_TEXT_TOKENS, dense_flops
from ..planning.frontier import Frontier, Point
from ..planning.search.search import effort_of
from ..progress import Listener
from ..runtime.plan import Grid, Plan
from .file import OWN_PLAN, Pipeline
from .hashes import content_sha256, data_sha256, task_sha256
from .schema import ExportPart, PipelineFile
from .steps import WORK, Made, Performer, Step
from .subject import Subject

TRAINING = 3  # forward passes that a forward and a backward one take
SET_QUESTIONS = 500  # of a task whose number of questions is not known before it is read


@dataclass(frozen=True)
class Artefact:
    """One model of a pipeline, `budget` None for a plan that was given: its folder, its exports, its answers."""

    name: str
    budget: float | None
    model: Made
    exports: tuple[Made, ...]
    evaluation: Made | None


@dataclass(frozen=True)
class Chain:
    """A pipeline whose steps are being performed on a subject."""

    pipeline: Pipeline
    subject: Subject
    perform: Performer
    progress: Listener

    @property
    def parts(self) -> PipelineFile:
        return self.pipeline.parts

    @property
    def where(self) -> dict[str, Any]:
        """What bytes depend on in every step: where it runs, and what is drawn."""
        return self.parts.said("device", "dtype", "seed")

    def artefacts(self) -> Iterator[Artefact]:
        """The models, in the order of their budgets; their steps are performed as they are asked for."""
        statistics = self._statistics()
        frontier = None if statistics is None else self._frontier(statistics)
        budgets: list[float | None] = [*self.parts.budgets]
        for budget in budgets or [None]:
            name = f"{self.subject.name}-yopo-{'plan' if budget is None else f'{budget:g}'}"
            model = self._healed(name, self._converted(name, budget, statistics, frontier))
            exports = tuple(self._exported(name, model, part) for part in self.parts.exports)
            yield Artefact(name, budget, model, exports, self._evaluated(name, model))

    def _statistics(self) -> Made | None:
        """What the dense model does on the calibration questions; None where plans are given."""
        calibration, plan = self.parts.calibration, self.parts.plan
        if calibration is None or plan.file is not None or plan.frontier is not None:
            return None
        data, count, seed = self.pipeline.data(calibration.data), calibration.samples, self.parts.seed

        def make(path: Path) -> None:
            chosen = SampleSplit.of(data, count, seed).chosen()
            api.calibrate(self.subject.model, chosen, seed=seed, file=path, progress=self.progress)

        inputs = {"model": self.subject.sha256, "data": self._calibration_sha256, "samples": count, **self.where}
        return self.perform(Step("calibrate", f"{WORK}/{self.subject.name}.statistics", inputs, make, flops=count * self._forward))

    def _frontier(self, statistics: Made) -> Made | None:
        """The measured search; None for plans of another recipe, which are made in converting."""
        calibration, plan = self.parts.calibration, self.parts.plan
        assert calibration is not None
        if plan.recipe != SEARCHED:
            return None
        asked = DEFAULT_EFFORT if plan.effort is None else plan.effort
        effort = effort_of(asked, self.subject.sizes.num_hidden_layers, len(self.parts.budgets))
        data = self.pipeline.data(calibration.data)

        def make(path: Path) -> None:
            frontier = api.plan(
                self.subject.model, data, self.parts.budgets, count=calibration.samples, seed=self.parts.seed,
                statistics=statistics.path, grid=grid_of(plan.grid), refit=plan.compensation != "none", effort=effort,
                served_by=plan.served_by, state=path.with_suffix(".search"), progress=self.progress,
            )  # fmt: skip
            frontier.save(path)

        inputs = {
            "model": self.subject.sha256,
            "statistics": statistics.sha256,
            "data": self._calibration_sha256,
            **self.parts.said("budgets", "calibration", "plan"),
            **self.where,
        }
        flops = effort.forwards * calibration.samples * self._forward
        return self.perform(Step("plan", "frontier.json", inputs, make, flops=flops))

    def _converted(self, name: str, budget: float | None, statistics: Made | None, frontier: Made | None) -> Made:
        calibration, plan = self.parts.calibration, self.parts.plan
        data = None if calibration is None else self.pipeline.data(calibration.data)
        refit = None if plan.compensation is None else plan.compensation == "refit"
        made: dict[str, Any] = {"recipe": plan.recipe, "statistics": statistics and statistics.path, "grid": grid_of(plan.grid)}

        def make(path: Path) -> None:
            chosen = self._chosen(budget, frontier)
            api.convert(
                self.subject.model, chosen, path, samples=data or default_samples(self.subject.model, chosen, self.progress),
                count=calibration.samples if calibration else SAMPLES, seed=self.parts.seed, refit=refit, force=True,
                served_by=plan.served_by, command=self.pipeline.command, progress=self.progress,
                **(made if isinstance(chosen, float) else {}),
            )  # fmt: skip

        inputs: dict[str, Any] = {"model": self.subject.sha256, "budget": budget, "command": self.pipeline.command, **self.where}
        inputs |= self.parts.said("calibration", "plan") | {"data": self._calibration_sha256, "plan": self._plan_sha256(frontier)}
        inputs |= {"statistics": statistics and statistics.sha256}
        folder = f"{WORK}/pruned" if self.parts.healing else "models"
        flops = (calibration.samples if calibration else SAMPLES) * self._forward
        return self.perform(Step(f"convert {name}", f"{folder}/{name}", inputs, make, self.subject.bytes, flops))

    def _plan_sha256(self, frontier: Made | None) -> str | None:
        """Of the file that the plan is from, with how it is asked for."""
        plan = self.parts.plan
        if frontier is not None:
            return frontier.sha256
        given = plan.file or plan.frontier
        return content_sha256(Path(self.pipeline.place(given))) if given and given != OWN_PLAN else None

    def _chosen(self, budget: float | None, frontier: Made | None) -> Plan | Point | float:
        plan = self.parts.plan
        if plan.file is not None:
            given = plan.file if plan.file == OWN_PLAN else self.pipeline.place(plan.file)
            return plan_from(self.subject.model, given, window=plan.window, depth=plan.depth, ffn_ratio=plan.ffn_ratio)
        assert budget is not None
        file = Path(self.pipeline.place(plan.frontier)) if plan.frontier else frontier and frontier.path
        return Frontier.load(file).at(budget) if file else budget

    def _healed(self, name: str, pruned: Made) -> Made:
        if (healing := self.parts.healing) is None:
            return pruned
        data = self.pipeline.data(healing.data)
        how = healing.model_dump(exclude={"data", "samples"})

        def make(path: Path) -> None:
            model = load(pruned.path, device=self.parts.device, dtype=self.parts.dtype)
            api.heal(
                model, data, path, count=healing.samples, seed=self.parts.seed, force=True, command=self.pipeline.command,
                progress=self.progress, **how,
            )  # fmt: skip

        inputs: dict[str, Any] = {"model": pruned.sha256, "data": self._healing_sha256, "command": self.pipeline.command}
        inputs |= self.parts.said("healing") | self.where
        passes = (healing.samples or BUNDLED_SAMPLES) + TRAINING * healing.steps * healing.batch_size
        return self.perform(Step(f"heal {name}", f"models/{name}", inputs, make, self.subject.bytes, passes * self._forward))

    def _exported(self, name: str, model: Made, part: ExportPart) -> Made:
        def make(path: Path) -> None:
            api.export(
                load(model.path), path, target=part.target, grids=tuple(Grid(*map(int, text.split("x"))) for text in part.grids),
                opset=part.opset, dtype=part.dtype, bits=part.bits, parity=part.parity, force=True, progress=self.progress,
            )  # fmt: skip

        inputs = {"model": model.sha256, **part.model_dump()}
        return self.perform(Step(f"export {name} for {part.target}", f"exports/{name}-{part.target}", inputs, make, self.subject.bytes))

    def _evaluated(self, name: str, model: Made) -> Made | None:
        if (evaluation := self.parts.evaluation) is None:
            return None
        tasks = [self.pipeline.task(part.task) for part in evaluation.tasks]
        how = evaluation.model_dump(exclude={"tasks"})

        def make(path: Path) -> None:
            opened = load(model.path, device=self.parts.device, dtype=self.parts.dtype)
            evaluate_benchmarks(opened, EvaluationRequest(tuple(tasks), seed=self.parts.seed, save=path, **how), self.progress)

        inputs: Mapping[str, Any] = {"model": model.sha256, "tasks": {task: task_sha256(task) for task in tasks}, **how, **self.where}
        flops = 2 * len(tasks) * (evaluation.samples or SET_QUESTIONS) * self._forward
        return self.perform(Step(f"evaluate {name}", f"evaluations/{name}.jsonl", inputs, make, flops=flops))

    @cached_property
    def _calibration_sha256(self) -> str | None:
        calibration = self.parts.calibration
        return None if calibration is None else data_sha256(self.pipeline.data(calibration.data))

    @cached_property
    def _healing_sha256(self) -> str | None:
        healing = self.parts.healing
        return None if healing is None else data_sha256(self.pipeline.data(healing.data))

    @property
    def _forward(self) -> float:
        """FLOPs of the dense language model for one question about one picture."""
        return float(dense_flops(self.subject.sizes, sum(grid.tokens for grid in self.subject.grids) + REFERENCE_TEXT_TOKENS))


def grid_of(text: str | None) -> Grid | None:
    """`24x24`, as the schema lets it through."""
    return None if text is None else Grid(*map(int, text.split("x")))
