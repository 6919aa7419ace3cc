"""What documents and examples show of pipelines is what there is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from converters.pipeline.file import read_pipeline
from converters.pipeline.schema import PipelineFile
from tools.docs.blocks import code

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pipelines.md").read_text(encoding="utf-8")
INPUT = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}|inputs\.([\w-]+) ==")


def keys(schema: type[BaseModel]) -> set[str]:
    """Every key of a schema and of its parts."""
    parts = [part for part in map(_part, (field.annotation for field in schema.model_fields.values())) if part is not None]
    return {field.alias or name for name, field in schema.model_fields.items()}.union(*map(keys, parts))


def _part(annotation: Any) -> type[BaseModel] | None:
    for one in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def test_the_page_names_every_key() -> None:
    assert {"budgets", "min_retention", "bits", "ffn_ratio", "recompute"} <= keys(PipelineFile)
    assert keys(PipelineFile) <= set(re.findall(r"`([\w]+)`", PAGE))


def test_the_pipelines_that_are_shown_are_pipelines(tmp_path: Path) -> None:
    shown = [text for text in code(PAGE, "yaml") if text.startswith("model:")]
    assert shown
    for text in shown:
        (tmp_path / "shown.yaml").write_text(text)
        read_pipeline(tmp_path / "shown.yaml")
    read_pipeline(ROOT / "examples/demo.yaml")


@pytest.mark.parametrize("workflow", [(ROOT / "examples/prune.yml").read_text(), *[text for text in code(PAGE, "yaml") if "uses:" in text]])
def test_workflows_give_the_action_what_it_takes(workflow: str) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    asked = {name for pair in INPUT.findall((ROOT / "action.yml").read_text()) for name in pair if name}
    assert asked == set(action["inputs"])
    found = yaml.safe_load(workflow)
    steps = found["jobs"]["prune"]["steps"] if isinstance(found, dict) else found
    (step,) = [step for step in steps if step.get("uses", "").startswith("OWNER/yopo")]
    assert step["with"].keys() <= action["inputs"].keys()
    assert {name for name, one in action["inputs"].items() if one.get("required")} <= step["with"].keys()
    assert all("shell" in step for step in action["runs"]["steps"] if "run" in step)
