"""What healing learns from, and a record of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.checkpoint.convert import convert
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.healing.answers import TeacherAnswer, records
from converters.healing.training import Settings, TrainingOutcome, train
from converters.healing.tuning import Tuned, tuned_language, tuned_projector
from converters.runtime.plan import Grid, LayerPlan, Plan
from support.checkpoints import save_model
from support.conversions import load, provenance

SETTINGS = Settings(steps=6, batch=4, micro=4, rate=1e-2, seed=0)
RECORD = {
    "tune": "projector", "kept": True, "divergence": {"before": 0.5, "after": 0.25}, "steps": 6, "batch_size": 4, "samples": 8,
    "held_out": 4, "data": {"from": "ours.jsonl"}, "command": "yopo heal tiny",
}  # fmt: skip


def answered(model: Any, *batches: Any) -> list[TeacherAnswer]:
    with model.dense():
        return [record for batch in batches for record in records(model, model.projector, batch, max_new_tokens=4)]


def pruned_llava(folder: Path) -> Path:
    """A tiny LLaVA of which visual tokens are frozen and half of them read."""
    save_model(folder / "dense", layers=3)
    layers = (LayerPlan((0, 1, 2, 3), (), (), None, 2), LayerPlan((0, 2), (1,), (3, 4), 3), LayerPlan((1, 2), (), (), None, 3))
    checkpoint = open_checkpoint(folder / "dense")
    return convert(checkpoint, Plan(checkpoint.sizes, layers, (Grid(4, 4),)), folder / "pruned", provenance(folder / "dense"))


def trained(
    pruned: Path, learned_from: Sequence[TeacherAnswer], folder: Path, settings: Settings = SETTINGS, language: bool = False, **options: Any
) -> tuple[Tuned, TrainingOutcome]:
    """A model that was trained on the first eight of twelve records, and the outcome."""
    model, checkpoint = load(pruned), open_converted(pruned).open_tensors()
    tuned = tuned_language(model, checkpoint, 0) if language else tuned_projector(model, checkpoint)
    outcome = train(
        model, tuned.part, model.config.image_token_id, learned_from, frozenset(range(8, 12)), settings, folder, {"model": "tiny"},
        tuned.finish, **options,
    )  # fmt: skip
    return tuned, outcome
