"""What a report is made of, small and by hand."""

import json
from pathlib import Path
from typing import Any


def side(value: float, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    return {"questions": 4, "figures": {"accuracy": {"value": value, "low": low, "high": high}}, **more}


KEPT = {"retention": {"value": 0.5, "low": 0.25, "high": 1.0}, "lost": 2, "won": 0, "p_value": 0.5, "changed": 0.5}
TASK = {
    "unit": "question",
    "pictures": 4,
    "origin": {"repository": "lmms-lab/GQA", "revision": "0123456789abcdef", "questions": 12, "asked": 4},
    "sides": {"dense": side(100, 100, 100, published=62.0), "pruned": side(50, 0, 100, **KEPT), "fastv": side(25, None, None, **KEPT)},
    "kinds": {
        "query": {"dense": side(100, 100, 100), "pruned": side(0, 0, 0), "fastv": side(12.5, 0, 50)},
        "verify": {"dense": side(100, 100, 100), "pruned": side(50, 0, 100), "fastv": side(25, 0, 50)},
    },
}
EVALUATION = {
    "model": "demo <pruned>",
    "protocol": "llava",
    "batch_size": 16,
    "dtype": "float32",
    "device": "cpu",
    "versions": {"torch": "2"},
    "yopo": "0.1.0",
    "base": "demo",
    "executed": {
        "dense": {"visual_share": 1.0},
        "pruned": {"visual_share": 0.12},
        "fastv": {"visual_share": 0.11, "tokens_by_layer": [576, 576, 61], "setting": "as published"},
        "vica": {"left_out": "x"},
    },
    "tasks": {"gqa": TASK},
}
ANSWER = {
    "task": "gqa",
    "id": "1",
    "kind": None,
    "picture": "p",
    "question": "What is <b>?",
    "accepted": ["yes"],
    "answers": {"dense": "yes", "pruned": "no"},
    "scores": {"dense": 1, "pruned": 0},
    "changed": {"pruned": "lost"},
    "thumbnail": "AAAA",
}


def write_answers(file: Path) -> Path:
    """What `yopo eval --save` leaves: one answer that changed, and one that did not."""
    same = ANSWER | {"id": "2", "answers": {"dense": "yes", "pruned": "yes"}, "changed": {"pruned": None}}
    lines = [{"yopo_answers": 1, "settings": {}}, {"side": "dense", "facts": {}}, {"results": EVALUATION}, ANSWER, same]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_attention(file: Path, layers: int = 8, heads: int = 8) -> Path:
    maps = {"yopo_attention": 1, "samples": 3, "read": [[0.5] * heads] * layers, "by_distance": [[0.1, 0.2, 0.0]] * layers}
    file.write_text(json.dumps(maps))
    return file


def write_bench(file: Path) -> Path:
    one = {"name": "dense", "budget": None, "visual_share": 1.0, "kv_bytes": 2_000_000, "decode": None}
    prefill = {"seconds": 1.5, "ratio": 1.0}
    run = {"visual_tokens": 576, "batch": 1, "sides": [one | {"prefill": prefill}]}
    file.write_text(json.dumps({"model": "m", "device_name": "cpu", "dtype": "float32", "ceiling": {}, "runs": [run]}) + "\n")
    return file
