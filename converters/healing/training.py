"""Healing on transformers' Trainer: checkpoints, resuming, schedule, mixed precision, TensorBoard and several processes are its own."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..errors import YopoError
from ..json_files import read_json, read_object
from .answers import TeacherAnswer, write_whole
from .student import Student, collate

RUN = "run.json"
SAVES = 20  # checkpoints over a whole run, of which the last two stay
WARM_UP = 0.05  # of the steps

ANEW = "Remove that folder to start anew."
MAX_STATE_BYTES = 1 << 28

Progress = Callable[[int, float | None], None]


@dataclass(frozen=True)
class Settings:
    """How to train: AdamW on a cosine. `batch` samples a step over all processes, `micro` of them at a time in each."""

    steps: int
    batch: int
    micro: int
    rate: float
    seed: int


@dataclass(frozen=True)
class TrainingOutcome:
    """Divergence from the dense model's answers, in nats a token, of samples that were not trained on."""

    before: float
    after: float
    steps: int
    processes: int

    @property
    def better(self) -> bool:
        return self.after < self.before


def accumulation(settings: Settings, processes: int) -> int:
    """Micro-batches a step in each process. Raises YopoError where the batch cannot be shared out evenly."""
    each, rest = divmod(settings.batch, processes * settings.micro)
    if rest or not each:
        raise YopoError(
            f"A batch of {settings.batch} is not a multiple of {processes} x {settings.micro} samples.",
            "Choose --batch-size as a multiple of the processes times --micro-batch.",
        )
    return each


def train(
    model: Any,
    tuned: nn.Module,
    placeholders: Sequence[int],
    records: Sequence[TeacherAnswer],
    held_out: frozenset[int],
    settings: Settings,
    folder: Path,
    facts: Mapping[str, Any],
    rounded: Callable[[], None] = lambda: None,
    progress: Progress = lambda step, loss: None,
) -> TrainingOutcome:
    """Train `tuned`, a part of the converted `model`, on the records that are not held out, whole batches of them; it goes on where a
    killed run was.

    `folder` keeps checkpoints and TensorBoard's log, `facts` say whose they are. `rounded` brings the tuned weights to what will be
    written, before they are measured. Raises YopoError for the folder of another run and for batches that cannot be shared out.
    """
    _claim(folder, {**facts, "settings": asdict(settings)})
    last = last_checkpoint(folder)
    trainer, measuring = (
        _trainer(Student(model, tuned, placeholders), records, held_out, settings, folder, callbacks)
        for callbacks in ([_ReportSteps(progress), _log(folder)], [])
    )
    state = folder / "before.json"
    # Not by `trainer`: one that measured first would never share its gradients with other processes.
    before = read_number(state) if state.exists() else _measure(measuring)
    if trainer.is_world_process_zero():
        write_whole(state, json.dumps(before).encode())
    with _resuming(last):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    rounded()
    return TrainingOutcome(before, _measure(trainer), trainer.state.global_step, trainer.args.world_size)


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that is whole: the Trainer writes its state after all else."""
    names = (re.fullmatch(r"checkpoint-([0-9]{1,18})", path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    for step in sorted((int(match[1]) for match in names if match), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        try:
            read_object(checkpoint / "trainer_state.json", "", MAX_STATE_BYTES)
        except YopoError:
            continue
        return checkpoint
    return None


def read_number(file: Path) -> float:
    """The number in a file of a run. Raises YopoError where there is none."""
    number = read_json(file, ANEW)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise YopoError(f"{file} is not a number.", ANEW)
    return float(number)


@contextmanager
def _resuming(last: Path | None) -> Iterator[None]:
    """Tell what is raised while a run goes on from a checkpoint: where that is damaged, the Trainer may raise anything."""
    try:
        yield
    except (YopoError, MemoryError):
        raise
    except Exception as error:
        if last is None or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise YopoError(f"The run cannot go on from {last}: {reason:.300}", ANEW) from error


def _claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Make the folder this run's. Raises YopoError where it is another one's."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RUN
    if file.exists() and (found := read_object(file, ANEW)) != facts:
        differ = ", ".join(sorted(name for name in found.keys() | facts.keys() if found.get(name) != facts.get(name)))
        raise YopoError(f"{folder} holds an unfinished run with other {differ}.", "Remove it, or choose another output with -o.")
    write_whole(file, json.dumps(facts, indent=2).encode())


def _trainer(
    student: Student, records: Sequence[TeacherAnswer], held_out: frozenset[int], settings: Settings, folder: Path, callbacks: list[Any]
) -> Trainer:
    trainer = _InOrder(
        student,
        _arguments(student.model, settings, folder),
        data_collator=collate,
        train_dataset=Subset(records, _order(len(records), held_out, settings)),  # type: ignore[arg-type]
        eval_dataset=Subset(records, sorted(held_out)),  # type: ignore[arg-type]
        compute_metrics=_divergence,
        callbacks=callbacks,
    )
    for callback in (PrinterCallback, ProgressCallback):  # they write to stdout
        trainer.remove_callback(callback)
    return trainer


def _arguments(model: Any, settings: Settings, folder: Path) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro,
        per_device_eval_batch_size=settings.micro,
        gradient_accumulation_steps=accumulation(settings, processes),
        learning_rate=settings.rate,
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARM_UP * settings.steps),
        save_steps=max(1, settings.steps // SAVES),
        save_total_limit=2,
        logging_steps=max(1, settings.steps // 100),
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        use_cpu=model.device.type == "cpu",
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
    )


def _log(folder: Path) -> TensorBoardCallback:
    log = TensorBoardCallback()
    log.logging_dir = log.logging_dir or str(folder / "tensorboard")
    return log


class _InOrder(Trainer):  # type: ignore[misc]
    """Takes the samples as they come: their order is the same for every number of processes."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


def _order(count: int, held_out: frozenset[int], settings: Settings) -> list[int]:
    """The samples of all steps, one permutation after another."""
    kept = torch.tensor([index for index in range(count) if index not in held_out])
    generator = torch.Generator().manual_seed(settings.seed)
    rounds = math.ceil(settings.steps * settings.batch / len(kept))
    order = torch.cat([kept[torch.randperm(len(kept), generator=generator)] for _ in range(rounds)])
    found: list[int] = order[: settings.steps * settings.batch].tolist()
    return found


def _measure(trainer: Trainer) -> float:
    return float(trainer.evaluate()["eval_divergence"])


def _divergence(evaluated: Any) -> dict[str, float]:
    """Mean over the tokens of all samples, whatever process and batch they were in."""
    divergence, tokens = evaluated.predictions
    return {"divergence": float(divergence.sum(dtype="float64") / tokens.sum())}


class _ReportSteps(TrainerCallback):  # type: ignore[misc]
    """Hands the steps and the losses on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.progress(state.global_step, float(logs["loss"]))
