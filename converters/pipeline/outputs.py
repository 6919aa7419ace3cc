"""What a pipeline leaves beside its artefacts: the report, a summary, the gates, checksums, and where all came from."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.manifest import MANIFEST, file_sha256, manifest_text
from ..checkpoint.private import remove, whole_file
from ..loading import physical_memory
from ..report.gathering import gathered
from ..report.page import html, markdown
from .chain import Artefact
from .gates import Gate, junit
from .hashes import files_below, versions
from .steps import WORK, Outcome

REPORT, SUMMARY, GATES, PROVENANCE = "report.html", "summary.md", "gates.xml", "provenance.json"


def write_reports(folder: Path, title: str, artefacts: Sequence[Artefact], gates: Sequence[Gate]) -> None:
    """The report, the summary and the gates: the same bytes from the same artefacts."""
    things = [one.path for artefact in artefacts for one in (artefact.model, artefact.evaluation) if one is not None]
    found = gathered(map(str, things))
    _write(folder / REPORT, html(found, title))
    _write(folder / SUMMARY, markdown(found, title) + _gates_text(gates) + _artefacts_text(folder, artefacts))
    if gates:
        _write(folder / GATES, junit(gates))
    else:
        remove(folder / GATES)


def _gates_text(gates: Sequence[Gate]) -> str:
    if not gates:
        return ""
    rows = "".join(
        f"| {gate.model} | {gate.task} | {gate.demand} {gate.limit:g} | {'-' if gate.found is None else f'{gate.found:.4f}'} "
        f"| {'passed' if gate.passed else '**failed**'} |\n"
        for gate in gates
    )
    return f"\n## Gates\n\n| model | task | demand | found | |\n|---|---|---|---|---|\n{rows}"


def _artefacts_text(folder: Path, artefacts: Sequence[Artefact]) -> str:
    made = [one for artefact in artefacts for one in (artefact.model, *artefact.exports)]
    rows = "".join(f"| {one.path.relative_to(folder)} | {_bytes(one.path) / 1e6:,.1f} MB | {one.sha256[:12]} |\n" for one in made)
    return f"\n## Artefacts\n\n| folder | size | content |\n|---|---|---|\n{rows}"


def _bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in files_below(folder))


def write_checksums(folder: Path) -> None:
    """SHA256SUMS of every artefact and report; of neither `work` nor the provenance, which tells of times and of this machine."""
    left_out = (f"{WORK}/", PROVENANCE, MANIFEST)
    listed = [name for name in files_below(folder) if not name.startswith(left_out)]
    _write(folder / MANIFEST, manifest_text({name: file_sha256(folder / name) for name in listed}))


def write_provenance(folder: Path, facts: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """From what, by which command and versions, when, where, and how long each step took."""
    steps = [
        {"step": one.name, "output": one.output, "sha256": one.sha256, "inputs": one.inputs, "seconds": one.seconds, "skipped": one.skipped}
        for one in outcomes
    ]
    told = {**facts, "versions": {"python": platform.python_version(), **versions()}, "machine": machine(), "steps": steps}
    _write(folder / PROVENANCE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    """Where this runs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": physical_memory(),
        "gpus": gpus,
    }


def _write(file: Path, text: str) -> None:
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
