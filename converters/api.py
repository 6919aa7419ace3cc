"""What a Python program does with `import yopo`, and the command line with its options: one function for each command.

Every function takes a model as `load` gives it, or by its name or folder; samples as a list of `Sample`, a JSONL file or a bundled set's
name; and `progress`, which is called with what is going on (`converters.progress`). What is wrong is a `YopoError` with a hint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bench.benchmark import Bench, Benchmark, BenchRequest
from .bench.exports import ExportBenchmark, ExportBenchRequest, bench_export
from .conversion import convert
from .data.prompts import encode, prompt
from .data.sample import open_image
from .data.samples import SamplesLike
from .errors import YopoError
from .evaluation.answering import generate
from .evaluation.benchmarks import Evaluation, EvaluationRequest, evaluate_benchmarks
from .evaluation.tasks.wording import CHECKPOINT
from .evaluation.verification import Verification, checks
from .export import TARGETS, exporter
from .export.preparation import Wanted, request_of
from .export.request import ExportReport
from .healing.heal import BATCH_SIZE, STEPS, Healing, HealingRequest, Tune, heal_model
from .inspection import inspect
from .loading import Dtype, locate
from .model import Model, load, opened
from .placing import DeviceMap
from .planner import calibrate, plan
from .progress import Listener, unheard
from .runtime.plan import Grid

__all__ = ["ask", "bench", "calibrate", "convert", "evaluate", "export", "heal", "inspect", "load", "plan", "verify"]


@dataclass(frozen=True)
class Answer:
    """What a model said, and by which path of the runtime."""

    text: str
    path: str

    def to_json(self) -> dict[str, Any]:
        """`answer` and `path`."""
        return {"answer": self.text, "path": self.path}


def evaluate(
    model: Model | str | Path,
    samples: SamplesLike,
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    against: Sequence[str] = (),
    recipes: Sequence[str] = (),
    budget: float | None = None,
    protocol: str = CHECKPOINT,
    save: Path | None = None,
    progress: Listener = unheard,
) -> Evaluation:
    """Compare a pruned model with the dense one (itself, its plan switched off) on samples with answers, or on a published benchmark by
    its name; of a dense model score that alone.

    `count` of the questions, drawn with `seed`, are asked: all by default, 500 of a bundled set. `against` (token pruners) and `recipes`
    (other plans) answer too, at `budget` of the dense visual FLOPs, by default the model's own. Answers are kept in the file `save`,
    and an interrupted run goes on from it. Where healing changed the language model the dense one is not in the files any more, and
    `retention` is None. Raises YopoError.
    """
    request = EvaluationRequest(
        (samples,), protocol, count, seed, batch_size, max_new_tokens, tuple(against), tuple(recipes), budget, save=save
    )
    return next(Evaluation.of(*task) for task in evaluate_benchmarks(opened(model), request, progress)["tasks"].items())


def ask(model: Model | str | Path, question: str, images: Sequence[Any] = (), *, max_new_tokens: int = 256) -> Answer:
    """Ask one question about pictures (files or PIL images), or in words alone. The answer is greedy. Raises YopoError."""
    pictures = [open_image(image) for image in images]
    loaded = opened(model).loaded
    inputs = encode(loaded.processor, [prompt(loaded.processor, question, len(pictures))], pictures)
    return Answer(generate(loaded, inputs, max_new_tokens)[0], loaded.path_report())


def verify(
    model: Model | str | Path, *, device: str | None = None, dtype: Dtype | str = Dtype.AUTO, device_map: str | None = None,
    progress: Listener = unheard,
) -> Verification:  # fmt: skip
    """Check a converted model: file hashes, the plan against the tensors, and the runtime against the masked reference.

    `device`, `dtype` and `device_map` are those of a model given by name. Raises YopoError for what is no converted model.
    """
    if isinstance(model, Model):
        return Verification(model.name, tuple(checks(model.path, model.device, model.dtype, model.device_map)))
    return Verification(str(model), tuple(checks(locate(str(model)).path, device, Dtype(dtype), DeviceMap.of(device_map))))


def heal(
    model: Model | str | Path,
    samples: SamplesLike,
    output: Path | str | None = None,
    *,
    steps: int = STEPS,
    tune: Tune | str = Tune.PROJECTOR,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    micro_batch: int | None = None,
    learning_rate: float | None = None,
    recompute: bool = False,
    answers: Path | None = None,
    force: bool = False,
    command: str | None = None,
    progress: Listener = unheard,
) -> Healing:
    """Heal a converted model: its projector (or `tune="language"`) learns to make it answer as the dense model does.

    The questions of `count` samples (default: all, 3000 of a bundled set) are answered by the dense model, into the folder `answers`
    (default: beside the output), and learnt in `steps` of `batch_size`; a tenth is held out. An interrupted run goes on when it is called
    again. `output` defaults to NAME-healed; `recompute` halves the speed and takes far less memory. Raises YopoError.
    """
    started = time.monotonic()
    model = opened(model).on_one_device("Healing")
    target = Path(output) if output is not None else Path(f"{model.name}-healed")
    made = command or f"yopo.heal(yopo.load({model.name!r}), ...)"
    how = Tune(tune), count, seed, batch_size, micro_batch, learning_rate, recompute, answers, model.device, model.dtype, made
    record = heal_model(model.path, HealingRequest(samples, steps, *how), target, force, progress)
    return Healing(model.name, target, record, time.monotonic() - started)


def export(
    model: Model | str | Path,
    output: Path | str | None = None,
    *,
    target: str = "onnxruntime",
    grids: Sequence[Grid] = (),
    opset: int = 23,
    dtype: Dtype | str = Dtype.AUTO,
    bits: int | None = None,
    parity: bool = True,
    force: bool = False,
    progress: Listener = unheard,
) -> ExportReport:
    """Write a model as ONNX graphs that do only the visual work of its plan, over the same weights.

    `target`: onnxruntime, genai or transformers-js. `output` is a folder of its own, with copies of the weights (default: beside the
    model's own). `grids` are visual grids where the tower takes any size; `dtype` is what graphs compute in, auto: float16 for float16
    weights, else float32; `bits`: 4 or 8 for rounded weights of the language model; `parity` compares with PyTorch. Raises YopoError.
    """
    if target not in TARGETS:
        raise YopoError(f"There is no export target {target!r}.", f"There are: {', '.join(TARGETS)}.")
    write = exporter(target)
    folder = None if output is None else Path(output)
    return write(request_of(opened(model), Wanted(folder, tuple(grids), opset, Dtype(dtype), bits, parity, force), progress))


def bench(request: BenchRequest | ExportBenchRequest | str | Path, *, progress: Listener = unheard) -> Benchmark | ExportBenchmark:
    """Time a pruned model against the dense one, and against token pruners, in turns in one process, beside what the machine can do.

    A name or folder stands for `BenchRequest(model)`; an `ExportBenchRequest` times what `export` wrote. Raises YopoError.
    """
    if isinstance(request, ExportBenchRequest):
        return bench_export(request, progress)
    bench = Bench(request if isinstance(request, BenchRequest) else BenchRequest(str(request)))
    return bench.result(bench.runs(progress))
