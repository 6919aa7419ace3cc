"""What a pipeline's file may say: keys, types and ranges."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..calibration.statistics_schema import Count
from ..checkpoint.config_schema import Closed, Name

Budget = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
GridText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?$")]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class CalibrationPart(Closed):
    """Questions that plans are made on, and K and V fitted."""

    data: Name
    samples: Count = 128


class PlanPart(Closed):
    """How plans come about: by a recipe for each budget, or from a file."""

    recipe: Literal["auto", "interlaced", "yopo", "shortv", "opskip", "vica"] = "auto"
    effort: Literal["quick", "usual", "thorough"] | Annotated[float, Field(gt=0)] | None = None
    grid: GridText | None = None
    compensation: Literal["refit", "none"] | None = None
    frontier: Name | None = None
    file: Name | None = None
    served_by: Annotated[Literal["vllm"] | None, Field(alias="for")] = None
    window: Count | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    ffn_ratio: Count | None = None


class HealingPart(Closed):
    data: Name
    steps: Count = 400
    tune: Literal["projector", "language"] = "projector"
    samples: Annotated[int, Field(ge=2)] | None = None
    batch_size: Count = 32
    micro_batch: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    recompute: bool = False


class ExportPart(Closed):
    target: Literal["onnxruntime", "genai", "transformers-js"] = "onnxruntime"
    grids: list[GridText] = Field(default_factory=list)
    opset: Annotated[int, Field(ge=18, le=25)] = 23
    dtype: Literal["auto", "float32", "float16"] = "auto"
    bits: Literal[4, 8] | None = None
    parity: bool = True


class TaskPart(Closed):
    """A benchmark, a bundled set or a file of questions, and its gates."""

    task: Name
    min_retention: Share | None = None
    min_score: Share | None = None
    max_changed: Annotated[float, Field(ge=0, le=1)] | None = None


class EvaluationPart(Closed):
    tasks: Annotated[list[TaskPart], Field(min_length=1)]
    samples: Count | None = None
    batch_size: Count = 16
    max_new_tokens: Count | None = None
    protocol: Literal["checkpoint", "llava"] = "checkpoint"


class ReportPart(Closed):
    title: Name = "What pruning does"


class PushPart(Closed):
    """`{budget}` in the repository or the revision stands for each model's budget."""

    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.{}-]+$")]
    revision: Name = "main"
    private: bool = False


class PipelineFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: Name
    revision: Name | None = None
    adapter: Name | None = None
    device: Name | None = None
    dtype: DtypeName = "auto"
    seed: Seed = 0
    output: Name | None = None
    calibration: CalibrationPart | None = None
    budgets: list[Budget] = Field(default_factory=list)
    plan: PlanPart = PlanPart()
    healing: HealingPart | None = None
    exports: list[ExportPart] = Field(default_factory=list)
    evaluation: EvaluationPart | None = None
    report: ReportPart = ReportPart()
    push: PushPart | None = None

    def said(self, *parts: str) -> dict[str, Any]:
        """What the file says in these parts, JSON-ready."""
        return self.model_dump(include=set(parts))
