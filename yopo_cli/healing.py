"""Healing from the command line: questions, the dense model's answers, training under a bar, and what is written."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from converters.data.examples import Examples, read_examples
from converters.data.prompts import encode_examples
from converters.errors import YopoError
from converters.loading import Dtype, Loaded, load, pick_device, pick_dtype
from converters.processes import Processes, joined

from .ui.terminal import byte_bar, loss_bar, sample_bar, say

STEPS, BATCH_SIZE, RATE = 400, 32, 1e-3
REFITTED_RATE = 1e-4  # where K and V of visual tokens were refitted, there is less to learn, and more to spoil
BUNDLED_SAMPLES = 3000
ANSWER_BATCH = 16
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 256
STATE_SUFFIX = ".healing"


class Tune(StrEnum):
    """What healing may change."""

    PROJECTOR = "projector"
    LANGUAGE = "language"


@dataclass(frozen=True)
class Request:
    """What was asked for: questions, and how to train. `answers` is the folder of the dense model's answers, None: beside the output;
    `rate` is the learning rate's peak, None: RATE, or REFITTED_RATE where the model is refitted."""

    data: Path
    steps: int
    tune: Tune = Tune.PROJECTOR
    samples: int | None = None
    seed: int = 0
    batch_size: int = BATCH_SIZE
    micro_batch: int | None = None
    rate: float | None = None
    recompute: bool = False
    answers: Path | None = None
    device: str | None = None
    dtype: Dtype = Dtype.AUTO
    command: str = ""


def state_folder(output: Path) -> Path:
    """Where an interrupted run is kept, beside what it will write."""
    return output.with_name(output.name + STATE_SUFFIX)


def heal_model(path: Path, request: Request, output: Path, force: bool) -> dict[str, Any]:
    """Heal the converted model in `path`, and write it to `output`. Returns the record of it. Raises YopoError."""
    if not all(map(find_spec, ("accelerate", "peft", "tensorboard"))):
        raise YopoError("Healing needs accelerate, peft and tensorboard.", "Install them: pip install 'yopo[heal]'")
    from converters.checkpoint.folder import check_output
    from converters.checkpoint.reader import open_converted
    from converters.healing.training import Settings, accumulation, train
    from converters.healing.tuning import tuned_language, tuned_projector
    from converters.healing.written import write_healed

    check_output(output, force)
    processes = joined()
    converted = open_converted(path)
    micro = request.micro_batch or max(1, request.batch_size // processes.count)
    rate = request.rate if request.rate is not None else REFITTED_RATE if converted.refitted else RATE
    settings = Settings(request.steps, request.batch_size, micro, rate, request.seed)
    accumulation(settings, processes.count)
    _check_memory(converted, request, micro)
    _check_base(converted)
    examples = _examples(request)
    held_out = _held_out(examples.count, request)
    loaded = load(path, request.device, request.dtype)
    loaded.model.model.language_model.recomputing = request.recompute
    say(f"Path: {loaded.path_report()}")
    answers = _answered(loaded, converted, examples, request, output, processes)
    checkpoint = converted.open_tensors()
    facts = {"model": converted.section["base"]["fingerprint"], "plan": converted.section["plan"], "healed": converted.section["healing"]}
    facts |= {"data": _data_hash(request.data), "samples": examples.count, "dtype": loaded.dtype, "tune": request.tune}
    facts |= {"compensation": converted.section["compensation"]} if converted.refitted else {}
    language = request.tune is Tune.LANGUAGE
    tuned = tuned_language(loaded.model, checkpoint, request.seed) if language else tuned_projector(loaded.model, checkpoint)
    with loss_bar("Healing", request.steps) as progress:
        outcome = train(
            loaded.model,
            tuned.part,
            checkpoint.family.image_token(checkpoint.config),
            answers,
            held_out,
            settings,
            state_folder(output),
            facts,
            tuned.finish,
            progress,
        )
    record = _record(request, rate, examples, held_out, outcome)
    if processes.first:
        with byte_bar("Writing") as bar:
            write_healed(converted, tuned.tensors() if record["kept"] else {}, record, output, force=force, progress=bar)
        _tidy(state_folder(output))
    return record


def _check_memory(converted: Any, request: Request, micro: int) -> None:
    """Tell how much memory healing takes. Raises YopoError where there is not enough."""
    import os

    import torch

    from converters.healing.memory import available, check, needed, text
    from converters.healing.tuning import RANK

    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device, converted.path)
    rank = RANK if request.tune is Tune.LANGUAGE else 0
    memory = needed(converted.open_tensors(), converted.plan, getattr(torch, dtype).itemsize, micro, request.recompute, rank)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.startswith("cpu") else 1
    free = available(device)
    told = "unknown" if free is None else f"{free / 1e9:.1f} GB"
    say(f"Memory: about {memory.total / 1e9:.1f} GB for each of {processes} ({text(memory)}; {device}, {dtype}); free: {told}.")
    check(memory, free, processes, "this machine" if device.startswith("cpu") else device)


def _check_base(converted: Any) -> None:
    """Raise YopoError unless the files hold the base model that config.json names: its answers are what healing aims at."""
    base = converted.section.get("base") or {}
    again = "Convert the base model again with this version."
    if not base.get("name") or not base.get("fingerprint"):
        raise YopoError(f"The config.json of {converted.path} does not tell its base model's name and hash.", again)
    if not converted.dense_side:
        raise YopoError(f"The language model of {converted.path} was healed: the dense model is gone.", "Heal the model it was made from.")
    if (found := converted.dense_fingerprint()) != base["fingerprint"]:
        raise YopoError(
            f"The weights in {converted.path} are not those of {base['name']}: the hash is {found[:12]}, not {base['fingerprint'][:12]}.",
            f"They were changed after converting, or an older version wrote the hash. {again}",
        )


def _examples(request: Request) -> Examples:
    bundled = not request.data.exists()  # a set's name, or an error that tells so
    return read_examples(request.data, answers=False, count=request.samples or (BUNDLED_SAMPLES if bundled else None), seed=request.seed)


def _held_out(count: int, request: Request) -> frozenset[int]:
    """A tenth of the samples or 256, and what is left over of whole batches. Raises YopoError where no batch is left to train on."""
    number = max(1, min(MOST_HELD_OUT, round(HELD_OUT_SHARE * count)))
    number += (count - number) % request.batch_size
    if number == count:
        raise YopoError(
            f"{request.data} has {count} questions, too few to hold a tenth out and train on batches of {request.batch_size}.",
            "Use more questions (a few thousand), or a smaller --batch-size.",
        )
    return frozenset(Random(request.seed).sample(range(count), number))


def _answered(loaded: Loaded, converted: Any, examples: Examples, request: Request, output: Path, processes: Processes) -> Any:
    """The dense model's answers; those that are not there yet are made now, each process its share."""
    from converters.healing.answers import Answers

    folder = request.answers or state_folder(output) / "answers"
    if not folder.parent.exists() and request.answers:
        raise YopoError(f"The folder {folder.parent} does not exist.", "Make it first.")
    facts = {"model": converted.section["base"]["fingerprint"], "data": _data_hash(request.data)}
    facts |= {"samples": examples.count, "seed": request.seed, "dtype": loaded.dtype}
    answers = Answers(folder, examples.count, facts)
    processes.gathered(None)  # none may answer before all have seen what is missing
    missing = list(processes.share(answers.missing()))
    if missing:
        _answer(loaded, examples, answers, missing)
    processes.gathered(None)
    return answers


def _answer(loaded: Loaded, examples: Examples, answers: Any, missing: list[int]) -> None:
    from converters.healing.answers import records

    wanted, waiting = set(missing), []
    with sample_bar("Answering", len(missing)) as progress, loaded.model.dense():
        done = 0
        for index, example in enumerate(examples.stream()):
            if index in wanted:
                waiting.append((index, example))
            if waiting and (len(waiting) == ANSWER_BATCH or index + 1 == examples.count):
                batch = encode_examples(loaded.processor, [example for _, example in waiting])
                for (place, _), record in zip(waiting, records(loaded.model, loaded.model.projector, batch), strict=True):
                    answers.put(place, record)
                done += len(waiting)
                progress(done)
                waiting = []


def _data_hash(data: Path) -> str:
    return hashlib.sha256(data.read_bytes()).hexdigest() if data.is_file() else str(data)


def _record(request: Request, rate: float, examples: Examples, held_out: frozenset[int], outcome: Any) -> dict[str, Any]:
    return {
        "tune": request.tune.value,
        "kept": outcome.better,
        "divergence": {"before": outcome.before, "after": outcome.after},
        "steps": outcome.steps,
        "batch_size": request.batch_size,
        "learning_rate": rate,
        "seed": request.seed,
        "samples": examples.count - len(held_out),
        "held_out": len(held_out),
        "data": {"from": Path(examples.origin).name, "hash": _data_hash(request.data)},
        "seconds": round(outcome.seconds, 1),
        "processes": outcome.processes,
        "command": request.command,
    }


def _tidy(folder: Path) -> None:
    """Checkpoints have done their work; answers and TensorBoard's log stay."""
    from shutil import rmtree

    for checkpoint in folder.glob("checkpoint-*"):
        rmtree(checkpoint)
    for file in folder.glob("*.json"):
        file.unlink()
