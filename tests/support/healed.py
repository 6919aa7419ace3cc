"""What healing learns from, and a record of it."""

from typing import Any

from converters.healing.answers import Record, records

RECORD = {
    "tune": "projector", "kept": True, "divergence": {"before": 0.5, "after": 0.25}, "steps": 6, "batch_size": 4, "samples": 8,
    "held_out": 4, "data": {"from": "ours.jsonl"}, "command": "yopo heal tiny",
}  # fmt: skip


def answered(model: Any, *batches: Any) -> list[Record]:
    with model.dense():
        return [record for batch in batches for record in records(model, model.projector, batch, max_new_tokens=4)]
