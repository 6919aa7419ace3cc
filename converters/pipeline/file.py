"""From a file to a pipeline: YAML of bounded size, without aliases, no key twice, none unknown; what contradicts itself is an error."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.formats import HUB
from ..errors import YopoError
from ..json_files import MAX_DEPTH, conforming, read_bytes
from .schema import PipelineFile, PlanPart

MAX_BYTES = 1_000_000
HINT = "docs/pipelines.md lists every key."
OWN_PLAN = "config"


@dataclass(frozen=True)
class Pipeline:
    """What a file says, and where the file is: relative paths in it are relative to its folder."""

    path: Path
    parts: PipelineFile

    @property
    def model(self) -> str:
        """The model as `yopo.load` takes it."""
        place = self.place(self.parts.model)
        name = place if Path(place).is_dir() else self.parts.model
        return name if self.parts.revision is None else f"{name}@{self.parts.revision}"

    @property
    def output(self) -> Path:
        """Where all goes, unless told otherwise: a folder named like the file, beside it."""
        return Path(self.place(self.parts.output or self.path.stem))

    @property
    def command(self) -> str:
        """The command that makes the same again."""
        return f"yopo run {self.path.name}"

    def place(self, text: str) -> str:
        """A path in the file as one from the working folder, where it is below that; else absolute."""
        found = os.path.abspath(self.path.parent / Path(text).expanduser())
        below = os.path.relpath(found)
        return found if below.startswith(os.pardir) else below

    def data(self, text: str) -> str:
        """Questions: a file, or what is none as it is, such as a bundled set's name."""
        return text if text.startswith(HUB) or not Path(self.place(text)).exists() else self.place(text)

    def task(self, text: str) -> str:
        """A task: a file of questions, NAME, NAME@REVISION, or NAME=PLACE."""
        name, equals, place = text.partition("=")
        return f"{name}={self.place(place)}" if equals else self.data(text)


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline in a file. Raises YopoError that names the key that is wrong."""
    data = _parsed(read_bytes(path, "Give the YAML file of a pipeline.", MAX_BYTES), path)
    if not isinstance(data, dict):
        raise YopoError(f"{path} is not a mapping of keys.", HINT)
    found = Pipeline(path, conforming(PipelineFile, data, str(path), HINT))
    if wrong := next(_contradictions(found.parts), None):
        raise YopoError(f"{path}: {wrong}.", HINT)
    return found


def _contradictions(parts: PipelineFile) -> Iterator[str]:
    """What each key allows, but not together."""
    plan, given = parts.plan, parts.plan.file is not None
    if given:
        yield from (f"plan.file is complete, {name} would do nothing" for name in _unused(parts))
        yield from () if _is_headmask(plan) else _cuts(plan)
    else:
        yield from [] if parts.budgets else ["budgets is missing; without plan.file a plan is made for each"]
        yield from _cuts(plan)
    if parts.calibration is None and not given and plan.frontier is None:
        yield "calibration is missing; plans are made on its questions"
    if parts.calibration is None and plan.compensation == "refit":
        yield "calibration is missing; K and V are fitted on its questions"
    if plan.frontier is not None and (plan.recipe != "auto" or plan.effort is not None or plan.grid is not None):
        yield "plan.frontier has its plans, recipe, effort and grid would do nothing"
    if plan.effort is not None and plan.recipe != "auto":
        yield f"plan.effort is for the measured search, not for {plan.recipe}"
    if len(set(parts.budgets)) < len(parts.budgets):
        yield "budgets has one twice"
    if len({export.target for export in parts.exports}) < len(parts.exports):
        yield "exports has a target twice"
    if parts.revision is not None and "@" in parts.model:
        yield "model has a revision of its own, beside revision"
    if (push := parts.push) and len(parts.budgets) > 1 and "{budget}" not in push.repository + push.revision:
        yield "push has one repository for several models; put {budget} into push.repository or push.revision"
    if push and not _fills(push.repository, push.revision):
        yield "push knows {budget} alone in braces"


def _unused(parts: PipelineFile) -> list[str]:
    plan = parts.plan
    unused = {"budgets": parts.budgets, "plan.frontier": plan.frontier, "plan.effort": plan.effort, "plan.grid": plan.grid}
    return [name for name, value in unused.items() if value]


def _cuts(plan: PlanPart) -> Iterator[str]:
    for name in ("window", "depth", "ffn_ratio"):
        if getattr(plan, name) is not None:
            yield f"plan.{name} goes with a head mask in plan.file"


def _is_headmask(plan: PlanPart) -> bool:
    return plan.file is not None and (plan.file == OWN_PLAN or plan.file.endswith(".npy"))


def _fills(*texts: str) -> bool:
    """Whether `{budget}` is all that is in braces."""
    return not any(set(text.replace("{budget}", "")) & set("{}") for text in texts)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data alone: what a few lines can make grow without bound (aliases, depth) is refused."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not used here", problem_mark=self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {MAX_DEPTH} levels", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        if twice := next((key for key, _ in reversed(node.value) if names.count(key.value) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"the key {twice.value!r} is there twice", problem_mark=twice.start_mark)
        return super().construct_mapping(node, deep)


def _parsed(text: bytes, path: Path) -> Any:
    try:
        return yaml.load(text.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise YopoError(f"{path} is not UTF-8 (byte {error.start}).", HINT) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise YopoError(f"{path} is not the YAML of a pipeline: {error.problem}{where}.", HINT) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise YopoError(f"{path} is not YAML: {' '.join(str(error).split()):.200}.", HINT) from None
