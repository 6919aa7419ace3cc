"""A pipeline from its file to its artefacts, or to what it would do."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..checkpoint.manifest import file_sha256
from ..errors import YopoError
from ..processes import joined
from ..progress import Listener, unheard
from .chain import Artefact, Chain
from .file import Pipeline, read_pipeline
from .gates import Gate, gates, results_of
from .outputs import SUMMARY, write_checksums, write_provenance, write_reports
from .pushing import push_steps, pushed
from .steps import Forecast, Outcome, Workshop, claimed
from .subject import adapted, forecast_subject, subject


@dataclass(frozen=True)
class Run:
    """What came of a pipeline: its folder, how its steps went, its gates, and what was pushed: nothing where a gate failed."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    gates: tuple[Gate, ...]
    pushed: tuple[dict[str, Any], ...]

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that did not pass."""
        return tuple(gate for gate in self.gates if not gate.passed)

    @property
    def summary(self) -> Path:
        """The summary in Markdown."""
        return self.folder / SUMMARY

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        steps = [{"step": one.name, "output": one.output, "seconds": one.seconds, "skipped": one.skipped} for one in self.outcomes]
        return {"output": str(self.folder), "steps": steps, "gates": [gate.to_json() for gate in self.gates], "pushed": list(self.pushed)}


@dataclass(frozen=True)
class Planned:
    """A step that a run would do, or has done. `bytes` are what it writes, `flops` the least that it computes; None: not known."""

    name: str
    output: str
    finished: bool
    bytes: int | None
    flops: float | None


def run(file: Path | str, output: Path | str | None = None, *, progress: Listener = unheard) -> Run:
    """Do what a pipeline's file says, in `output` (default: what the file says, else a folder named like it, beside it).

    Steps that were finished with the same inputs are skipped; an interrupted run goes on. Nothing is pushed where a gate fails.
    Raises YopoError.
    """
    if joined().count > 1:
        raise YopoError("A pipeline runs in one process.", "Run its steps by their own commands to use several.")
    pipeline, began = read_pipeline(Path(file)), datetime.now(UTC)
    with claimed(pipeline.output if output is None else Path(output)) as folder:
        workshop = Workshop(folder, progress)
        dense = subject(pipeline.model, pipeline.parts.device, pipeline.parts.dtype)
        artefacts = list(Chain(pipeline, adapted(pipeline, dense, workshop, progress), workshop, progress).artefacts())
        found = _gates(pipeline, artefacts)
        write_reports(folder, pipeline.parts.report.title, artefacts, found)
        passed = all(gate.passed for gate in found)
        there = [pushed(workshop(step)) for step in push_steps(pipeline, artefacts, progress)] if passed else []
        workshop.remove_others()
        write_checksums(folder)
        source = dense.model.source
        facts = {
            "command": pipeline.command,
            "pipeline": {"file": pipeline.path.name, "sha256": file_sha256(pipeline.path), "says": pipeline.parts.model_dump()},
            "model": {"name": source.name, "repository": source.repository, "revision": source.revision, "sha256": dense.sha256},
            "began": began.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "gates_passed": passed,
            "pushed": there,
        }
        write_provenance(folder, facts, workshop.outcomes)
    return Run(folder, tuple(workshop.outcomes), tuple(found), tuple(there))


def forecast(file: Path | str, output: Path | str | None = None) -> tuple[Planned, ...]:
    """What `run` would do, step by step; nothing is written, and no weights are fetched. Raises YopoError."""
    pipeline = read_pipeline(Path(file))
    folder = pipeline.output if output is None else Path(output)
    seen = Forecast(folder)
    dense = forecast_subject(pipeline.model, pipeline.parts.device, pipeline.parts.dtype)
    artefacts = list(Chain(pipeline, adapted(pipeline, dense, seen, unheard), seen, unheard).artefacts())
    for step in push_steps(pipeline, artefacts, unheard):
        seen(step)
    return tuple(Planned(step.name, step.output, finished, step.size, step.flops) for step, finished in seen.steps)


def _gates(pipeline: Pipeline, artefacts: Sequence[Artefact]) -> list[Gate]:
    asked = pipeline.parts.evaluation
    if asked is None:
        return []
    return [gate for one in artefacts if one.evaluation for gate in gates(one.name, asked, results_of(one.evaluation.path))]
