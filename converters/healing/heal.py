"""Healing from beginning to end: questions, the dense model's answers, training, and what is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from ..data.prompts import encode_samples
from ..data.sample import Sample
from ..data.samples import Samples, SamplesLike, is_bundled, samples_hash, samples_of
from ..errors import YopoError
from ..loading import Dtype, Loaded, load, pick_device, pick_dtype
from ..processes import Processes, joined
from ..progress import Listener, Message, Progress

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
class HealingRequest:
    """What was asked for: questions, and how to train. `answers` is the folder of the dense model's answers, None: beside the output;
    `rate` is the learning rate's peak, None: RATE, or REFITTED_RATE where the model is refitted."""

    data: SamplesLike
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


@dataclass(frozen=True)
class Healing:
    """How healing went: `record` is what config.json says of it, `divergence` in nats a token on questions that were held out.

    The time that it took is no part of the record: the same inputs give the same files.
    """

    model: str
    output: Path
    record: dict[str, Any]
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether it helped; else the output is what it was made from."""
        return bool(self.record["kept"])

    @property
    def divergence(self) -> tuple[float, float]:
        """From the dense model's answers, before and after."""
        found = self.record["divergence"]
        return float(found["before"]), float(found["after"])

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {"model": self.model, "output": str(self.output), **self.record, "seconds": round(self.seconds, 3)}


def state_folder(output: Path) -> Path:
    """Where an interrupted run is kept, beside what it will write."""
    return output.with_name(output.name + STATE_SUFFIX)


def heal_model(path: Path, request: HealingRequest, output: Path, force: bool, progress: Listener) -> dict[str, Any]:
    """Heal the converted model in `path`, and write it to `output`. Returns the record of it. Raises YopoError."""
    if not all(map(find_spec, ("accelerate", "peft", "tensorboard"))):
        raise YopoError("Healing needs accelerate, peft and tensorboard.", "Install them: pip install 'yopo[heal]'")
    from ..checkpoint.config import method_of
    from ..checkpoint.folder import check_output
    from ..checkpoint.reader import open_converted

    check_output(output, force)
    processes = joined()
    converted = open_converted(path)
    if method_of(converted.config) is not None:
        raise YopoError(
            f"{path} is quantised, and healing teaches weights.", "Heal an unquantised model, and quantise it when you load it."
        )
    settings = _settings(request, converted.refitted, processes)
    _check_memory(converted, request, settings.micro, progress)
    _check_base(converted)
    samples = _samples(request)
    held_out = _held_out(samples, request)
    loaded = load(path, request.device, request.dtype)
    loaded.model.get_decoder().recomputing = request.recompute
    progress(Message(f"Path: {loaded.path_report()}"))
    data = samples_hash(samples)
    answers = _answered(loaded, converted, samples, data, request, output, processes, progress)
    facts = _facts(converted, samples, data, loaded, request)
    tuned, outcome = _trained(loaded, converted, answers, held_out, settings, state_folder(output), facts, request, progress)
    record = _record(request, settings.rate, samples, data, held_out, outcome)
    if processes.first:
        _write(converted, tuned, record, output, force, progress)
        _tidy(state_folder(output))
    return record


def _settings(request: HealingRequest, refitted: Any, processes: Processes) -> Any:
    """How to train. Raises YopoError where batches cannot be divided among the processes."""
    from .training import Settings, accumulation

    micro = request.micro_batch or max(1, request.batch_size // processes.count)
    rate = request.rate if request.rate is not None else REFITTED_RATE if refitted else RATE
    settings = Settings(request.steps, request.batch_size, micro, rate, request.seed)
    accumulation(settings, processes.count)
    return settings


def _facts(converted: Any, samples: Samples, data: str, loaded: Loaded, request: HealingRequest) -> dict[str, Any]:
    """What an interrupted run must have in common with the one that goes on."""
    section = converted.section
    facts = {"model": section["base"]["fingerprint"], "plan": section["plan"], "healed": section["healing"]}
    facts |= {"data": data, "samples": samples.count, "dtype": loaded.dtype, "tune": request.tune}
    return facts | ({"compensation": section["compensation"]} if converted.refitted else {})


def _trained(
    loaded: Loaded,
    converted: Any,
    answers: Any,
    held_out: frozenset[int],
    settings: Any,
    folder: Path,
    facts: Mapping[str, Any],
    request: HealingRequest,
    progress: Listener,
) -> tuple[Any, Any]:
    """What was tuned, and how training went."""
    from .training import train
    from .tuning import tuned_language, tuned_projector

    checkpoint = converted.open_tensors()
    language = request.tune is Tune.LANGUAGE
    tuned = tuned_language(loaded.model, checkpoint, request.seed) if language else tuned_projector(loaded.model, checkpoint)
    placeholders = checkpoint.family.placeholders(checkpoint.config)
    listener = _training(progress, request.steps)
    outcome = train(loaded.model, tuned.part, placeholders, answers, held_out, settings, folder, facts, tuned.finish, listener)
    return tuned, outcome


def _write(converted: Any, tuned: Any, record: dict[str, Any], output: Path, force: bool, progress: Listener) -> None:
    """The healed model, or the one that it was made from where healing did not help."""
    from .written import write_healed

    def written(done: int, total: int) -> None:
        progress(Progress("Writing", done, total, "bytes"))

    write_healed(converted, tuned.tensors() if record["kept"] else {}, record, output, force=force, progress=written)


def _check_memory(converted: Any, request: HealingRequest, micro: int, progress: Listener) -> None:
    """Tell how much memory healing takes. Raises YopoError where there is not enough."""
    import os

    import torch

    from .memory import available, check, needed, text
    from .tuning import RANK

    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device, converted.path)
    rank = RANK if request.tune is Tune.LANGUAGE else 0
    memory = needed(converted.open_tensors(), converted.plan, getattr(torch, dtype).itemsize, micro, request.recompute, rank)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.startswith("cpu") else 1
    free = available(device)
    free_text = "unknown" if free is None else f"{free / 1e9:.1f} GB"
    figures = f"{text(memory)}; {device}, {dtype}"
    progress(Message(f"Memory: about {memory.total / 1e9:.1f} GB for each of {processes} ({figures}); free: {free_text}."))
    check(memory, free, processes, "this machine" if device.startswith("cpu") else device)


def _check_base(converted: Any) -> None:
    """Raise YopoError unless the files hold the base model that config.json names: its answers are what healing aims at."""
    base = converted.section["base"]
    if not converted.dense_side:
        raise YopoError(f"The language model of {converted.path} was healed: the dense model is gone.", "Heal the model it was made from.")
    if (found := converted.dense_fingerprint()) != base["fingerprint"]:
        raise YopoError(
            f"The weights in {converted.path} are not those of {base['name']}: the hash is {found[:12]}, not {base['fingerprint'][:12]}.",
            "They were changed after converting. Convert the base model again with this version.",
        )


def _training(progress: Listener, steps: int) -> Callable[[int, float | None], None]:
    """What training calls with the steps done, and with the loss where there is a new one."""
    loss = ""

    def step(done: int, divergence: float | None) -> None:
        nonlocal loss
        loss = loss if divergence is None else f"divergence {divergence:.5f}"
        progress(Progress("Healing", done, steps, "steps", loss))

    return step


def _samples(request: HealingRequest) -> Samples:
    usual = BUNDLED_SAMPLES if is_bundled(request.data) else None
    return samples_of(request.data, answers=False, count=request.samples or usual, seed=request.seed)


def _held_out(samples: Samples, request: HealingRequest) -> frozenset[int]:
    """A tenth of the samples or 256, and what is left over of whole batches. Raises YopoError where no batch is left to train on."""
    count = samples.count
    number = max(1, min(MOST_HELD_OUT, round(HELD_OUT_SHARE * count)))
    number += (count - number) % request.batch_size
    if number == count:
        raise YopoError(
            f"{samples.origin} has {count} questions, too few to hold a tenth out and train on batches of {request.batch_size}.",
            "Use more questions (a few thousand), or a smaller --batch-size.",
        )
    return frozenset(Random(request.seed).sample(range(count), number))


def _answered(
    loaded: Loaded,
    converted: Any,
    samples: Samples,
    data: str,
    request: HealingRequest,
    output: Path,
    processes: Processes,
    progress: Listener,
) -> Any:
    """The dense model's answers; those that are not there yet are made now, each process its share."""
    from .answers import Answers

    folder = request.answers or state_folder(output) / "answers"
    if not folder.parent.exists() and request.answers:
        raise YopoError(f"The folder {folder.parent} does not exist.", "Make it first.")
    facts = {"model": converted.section["base"]["fingerprint"], "data": data}
    facts |= {"samples": samples.count, "seed": request.seed, "dtype": loaded.dtype}
    answers = Answers(folder, samples.count, facts)
    processes.gathered(None)  # none may answer before all have seen what is missing
    missing = list(processes.share(answers.missing()))
    if missing:
        _answer(loaded, samples, answers, missing, progress)
    processes.gathered(None)
    return answers


def _answer(loaded: Loaded, samples: Samples, answers: Any, missing: list[int], progress: Listener) -> None:
    from .answers import records

    wanted = set(missing)
    waiting: list[tuple[int, Sample]] = []
    done = 0
    with loaded.model.dense():
        for index, sample in enumerate(samples.stream()):
            if index in wanted:
                waiting.append((index, sample))
            if waiting and (len(waiting) == ANSWER_BATCH or index + 1 == samples.count):
                batch = encode_samples(loaded.processor, [sample for _, sample in waiting])
                for (place, _), record in zip(waiting, records(loaded.model, loaded.model.projector, batch), strict=True):
                    answers.put(place, record)
                done += len(waiting)
                progress(Progress("Answering", done, len(missing), "samples"))
                waiting = []


def _record(
    request: HealingRequest, rate: float, samples: Samples, data: str, held_out: frozenset[int], outcome: Any
) -> dict[str, Any]:  # fmt: skip
    return {
        "tune": request.tune.value,
        "kept": outcome.better,
        "divergence": {"before": outcome.before, "after": outcome.after},
        "steps": outcome.steps,
        "batch_size": request.batch_size,
        "learning_rate": rate,
        "seed": request.seed,
        "samples": samples.count - len(held_out),
        "held_out": len(held_out),
        "data": {"from": samples.file_name, "hash": data},
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
