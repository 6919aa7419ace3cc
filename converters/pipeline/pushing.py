"""Pushing as a step: what was pushed is remembered, and not pushed again while nothing has changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint.private import whole_file
from ..checkpoint.push import push
from ..json_files import read_object
from ..progress import Listener
from .chain import Artefact
from .file import Pipeline
from .steps import ANEW, WORK, Made, Step


def push_steps(pipeline: Pipeline, artefacts: list[Artefact], progress: Listener) -> Iterator[Step]:
    """One for each model; none where nothing is to be pushed."""
    for artefact in artefacts if pipeline.parts.push else ():
        yield _step(pipeline, artefact, progress)


def _step(pipeline: Pipeline, artefact: Artefact, progress: Listener) -> Step:
    from huggingface_hub import constants

    asked = pipeline.parts.push
    assert asked is not None
    budget = "plan" if artefact.budget is None else f"{artefact.budget:g}"
    repository, revision = (text.replace("{budget}", budget) for text in (asked.repository, asked.revision))

    def make(path: Path) -> None:
        done = push(artefact.model.path, repository, revision=revision, private=asked.private, progress=progress)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(done.to_json(), indent=2) + "\n", encoding="utf-8")

    inputs = {"model": artefact.model.sha256, "repository": repository, "revision": revision, "private": asked.private}
    inputs["endpoint"] = constants.ENDPOINT
    return Step(f"push {artefact.name} to {repository}", f"{WORK}/pushed/{artefact.name}.json", inputs, make)


def pushed(made: Made) -> dict[str, Any]:
    """What was pushed, from its record."""
    return read_object(made.path, ANEW)
