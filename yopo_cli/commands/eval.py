"""`yopo eval`: what pruning did to the answers."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.data.examples import BUNDLED, Example, Examples, batches, read_examples
from converters.errors import YopoError
from converters.evaluation.scores import Answered, Score, by_kind, score, score_json
from converters.export.loading import Runtime, load_with
from converters.loading import Dtype, Loaded, locate
from converters.processes import joined

from ..ui.costs import share_text
from ..ui.options import AllowCpu, Device, DtypeOption, Json, RuntimeOption
from ..ui.terminal import GATE_FAILED, sample_bar, say, show_json, show_table


def evaluate(
    model: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A converted model; of a dense one only the dense side is shown.")],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="demo, harder, sizes, or a JSONL file of {image, question, answer, kind?}; may be repeated."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Questions per task (default: 500 of a bundled set, all of a file).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 16,
    min_retention: Annotated[
        float | None, typer.Option(min=0, help="Exit with 3 if a task keeps less than this share of the dense accuracy.")
    ] = None,
    runtime: RuntimeOption = Runtime.TORCH,
    allow_cpu: AllowCpu = False,
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Json = False,
) -> None:
    """Compare the pruned model with the dense one on the same questions. The dense one is OUT with its plan switched off."""
    started = time.monotonic()
    tasks = _tasks(task or [BUNDLED], samples, seed)
    path = locate(model).path
    loaded = load_with(runtime, path, device, dtype, allow_cpu)
    if min_retention is not None and not loaded.pruned:
        raise YopoError(f"{model} is dense: it has no retention to demand.", "Leave --min-retention out, or give a converted model.")
    missing = _missing_dense_side(model, path, runtime)
    if missing and min_retention is not None:
        raise YopoError(missing, "Leave --min-retention out, and evaluate the base model beside it.")
    if missing:
        say(f"{missing} Evaluate the base model beside it.")
    say(f"Path: {loaded.path_report()}")
    answered = {examples.name: _answered(loaded, examples, missing is None, batch_size, max_new_tokens) for examples in tasks}
    if as_json:
        results = {name: score_json(score(answers)) | {"kinds": _kinds_json(answers)} for name, answers in answered.items()}
        seconds = round(time.monotonic() - started, 3)
        show_json({"model": model, "path": loaded.path_report(), "tasks": results, "seconds": seconds})
    else:
        show_table(("task", "questions", "dense", "pruned", "retention", "changed"), _rows(answered))
    _gate({name: score(answers) for name, answers in answered.items()}, min_retention)


def _missing_dense_side(model: str, path: Path, runtime: Runtime) -> str | None:
    """Why the dense model cannot answer, in a sentence; None where it can."""
    from converters.checkpoint.reader import has_dense_side, read_config

    section = read_config(path).get("yopo", {})
    if not has_dense_side(section):
        return f"The language model of {model} was healed: the dense model is not in it any more."
    if runtime is Runtime.ONNX and section.get("base_projector"):
        return f"{model} was healed, and an export has the healed projector alone: the dense model is not in it."
    return None


def _tasks(names: list[str], samples: int | None, seed: int) -> list[Examples]:
    tasks = [read_examples(Path(name), answers=True, count=samples, seed=seed) for name in names]
    seen = [examples.name for examples in tasks]
    if twice := sorted({name for name in seen if seen.count(name) > 1}):
        raise YopoError(f"Two tasks are named {', '.join(twice)}.", "A task is named after its file: rename one.")
    return tasks


def _answered(loaded: Loaded, examples: Examples, dense_side: bool, batch_size: int, max_new_tokens: int) -> list[Answered]:
    """Answers in the order of the questions; of several processes, each asks its share of the batches."""
    processes = joined()
    with sample_bar(f"Asking {examples.name}", examples.count) as progress:
        answered: list[list[Answered]] = []
        for batch in processes.share(batches(examples.stream(), batch_size)):
            answered.append(list(_batch(loaded, batch, dense_side, max_new_tokens)))
            progress(min(examples.count, sum(map(len, answered)) * processes.count))
    shares = processes.gathered(answered)
    in_turns = zip_longest(*shares, fillvalue=())
    return [one for turn in in_turns for batch in turn for one in batch]


def _batch(loaded: Loaded, batch: list[Example], dense_side: bool, max_new_tokens: int) -> Iterator[Answered]:
    """Both models' answers to the same inputs."""
    from converters.data.prompts import encode_examples
    from converters.evaluation.answering import generate

    inputs = encode_examples(loaded.processor, batch)
    nothing: list[str | None] = [None] * len(batch)
    pruned: Sequence[str | None] = generate(loaded, inputs, max_new_tokens) if loaded.pruned else nothing
    dense: Sequence[str | None] = nothing
    if dense_side:
        with loaded.model.dense() if loaded.pruned else nullcontext():
            dense = generate(loaded, inputs, max_new_tokens)
    for example, expensive, cheap in zip(batch, dense, pruned, strict=True):
        yield Answered(example.answer or "", expensive, cheap, example.kind)


def _kinds_json(answered: list[Answered]) -> dict[str, Any]:
    return {kind: score_json(result) for kind, result in by_kind(answered).items()}


def _rows(answered: dict[str, list[Answered]]) -> Iterator[tuple[str, ...]]:
    for name, answers in answered.items():
        yield _row(name, score(answers))
        for kind, result in by_kind(answers).items():
            yield _row(f"  {kind}", result)


def _row(name: str, result: Score) -> tuple[str, ...]:
    shares = (result.dense, result.pruned, result.retention, result.answer_flips)
    return name, str(result.samples), *map(share_text, shares)


def _gate(scores: dict[str, Score], least: float | None) -> None:
    """Exit with 3 if a task's retention is below `least`, or cannot be told because the dense model has nothing right."""
    if least is None:
        return
    failed = {name: result.retention for name, result in scores.items() if result.retention is None or result.retention < least}
    for name, retention in failed.items():
        told = "is unknown, the dense model has nothing right" if retention is None else f"is {retention:.4f}"
        say(f"Gate failed: the retention on {name} {told}, below {least:g}.")
    if failed:
        raise typer.Exit(GATE_FAILED)
