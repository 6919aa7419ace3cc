"""Gates: what each task must keep, as one answer each, and all of them as JUnit's XML."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import YopoError
from ..json_files import object_of
from .schema import EvaluationPart, TaskPart


@dataclass(frozen=True)
class Gate:
    """One demand on a model: `found` is the figure, None where there is none, such as retention where the dense model has nothing right."""

    model: str
    task: str
    demand: str
    limit: float
    found: float | None
    passed: bool

    @property
    def sentence(self) -> str:
        """How it went."""
        found = "is not known" if self.found is None else f"is {self.found:.4f}"
        what, _, bound = self.demand.partition(" ")
        return f"{self.model}, {self.task}: {what} {found}, {bound} {self.limit:g} is asked for"

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return asdict(self)


def results_of(answers: Path) -> dict[str, Any]:
    """What an evaluation came to, from the file of its answers. Raises YopoError for a file without."""
    hint = f"Remove {answers} and run again."
    with answers.open("rb") as lines:
        for line in lines:
            if isinstance(results := object_of(line, f"A line of {answers}", hint).get("results"), dict):
                return results
    raise YopoError(f"{answers} has no results.", hint)


def gates(model: str, asked: EvaluationPart, results: Mapping[str, Any]) -> Iterator[Gate]:
    """Every demand of every task; results are in the order in which tasks are asked for."""
    for part, (name, task) in zip(asked.tasks, results["tasks"].items(), strict=True):
        yield from _of_task(model, part, name, task)


def _of_task(model: str, part: TaskPart, name: str, task: Mapping[str, Any]) -> Iterator[Gate]:
    pruned = task["sides"]["pruned"]
    kept = (pruned.get("retention") or {}).get("value")
    score = next(iter(pruned["figures"].values()))["value"]
    for demand, limit, value in (
        ("retention at least", part.min_retention, kept),
        ("score at least", part.min_score, score),
        ("changed at most", part.max_changed, pruned.get("changed")),
    ):
        if limit is not None:
            within = value is not None and (value <= limit if demand == "changed at most" else value >= limit)
            yield Gate(model, name, demand, limit, value, within)


def junit(found: Iterable[Gate]) -> str:
    """A suite for each model, a case for each gate; without times, which are no part of what was found."""
    gates = list(found)
    root = ElementTree.Element("testsuites", {"name": "yopo", **_counts(gates)})
    for model in dict.fromkeys(gate.model for gate in gates):
        mine = [gate for gate in gates if gate.model == model]
        suite = ElementTree.SubElement(root, "testsuite", {"name": model, **_counts(mine)})
        for gate in mine:
            case = ElementTree.SubElement(suite, "testcase", classname=model, name=f"{gate.task}: {gate.demand} {gate.limit:g}")
            if not gate.passed:
                ElementTree.SubElement(case, "failure", message=gate.sentence)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _counts(gates: list[Gate]) -> dict[str, str]:
    return {"tests": str(len(gates)), "failures": str(sum(not gate.passed for gate in gates)), "errors": "0"}
