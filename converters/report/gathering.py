"""What a report is made of: files and models, recognised by what is in them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..inspection import Inspection, inspect
from ..json_files import parse_json, read_bytes

FORMS = "Give converted models or plans, what `yopo eval --save` or `--json`, `yopo bench --json` and `yopo inspect --attention` wrote."
MAX_BYTES = 1 << 28
Data = Mapping[str, Any]


@dataclass
class Report:
    """Models and plans; evaluations (as `yopo eval --json` prints them); answers that changed; bench records; attention maps."""

    models: list[Inspection] = field(default_factory=list)
    evaluations: list[Data] = field(default_factory=list)
    changed: list[Data] = field(default_factory=list)
    benches: list[Data] = field(default_factory=list)
    attention: list[tuple[str, Data]] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks, in the order of their first appearance."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one["tasks"]))


def gathered(things: Iterable[str]) -> Report:
    """The report's parts. Raises YopoError for what is none of them."""
    report = Report()
    for thing in things:
        path = Path(thing)
        if not path.is_file():
            report.models.append(inspect(thing))
            continue
        objects = list(_objects(path))
        if not all(_sorted_in(report, path, one) for one in objects) or not objects:
            raise YopoError(f"{path} is nothing that a report shows.", FORMS)
    return report


def _objects(path: Path) -> Iterator[Data]:
    """The JSON object in a file, or those of its lines."""
    text = read_bytes(path, FORMS, MAX_BYTES)
    try:
        objects = [parse_json(text, str(path), FORMS)]
    except YopoError:
        lines = [line for line in text.split(b"\n") if line.strip()]
        objects = [parse_json(line, f"{path}, line {number}", FORMS) for number, line in enumerate(lines, 1)]
    return (one for one in objects if isinstance(one, dict))


def _sorted_in(report: Report, path: Path, one: Data) -> bool:
    """Put an object where it belongs; False where that is nowhere."""
    if "yopo_attention" in one:
        report.attention.append((path.stem, one))
    elif "tasks" in one and "executed" in one:
        report.evaluations.append(one)
    elif "results" in one:
        report.evaluations.append(one["results"])
    elif "runs" in one and "ceiling" in one:
        report.benches.append(one)
    elif "changed" in one and "answers" in one:
        report.changed += [one] if any(one["changed"].values()) else []
    elif "plan" in one or "layers" in one:
        report.models.append(inspect(str(path)))
    else:
        return "yopo_answers" in one or "side" in one
    return True
