"""Changed plans, frontiers and statistics: what is accepted says what it means, and costs what it says."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from support.checkpoints import config_of, write_checkpoint
from support.tiny_search import searched, subject

from converters.calibration.statistics import METADATA_KEY
from converters.checkpoint.reader import open_checkpoint
from converters.planning.cost import cost
from converters.runtime.plan import from_json, to_json

from .cases import Ended, Tally, hidden, run, yopo
from .mutations import Change, changed, changes, damaged, drawn


def attack(tally: Tally, cases: int, number: int) -> None:
    with TemporaryDirectory() as place:
        model = Path(place) / "model"
        dense, config, _, statistics = subject()
        write_checkpoint(model, config_of(config), {name: tensor.clone() for name, tensor in dense.state_dict().items()})
        fingerprint = open_checkpoint(model).fingerprint()
        frontier = json.loads(json.dumps(searched().to_json())) | {"model": fingerprint}
        plan = to_json(searched().asked[1].plan)
        statistics.save(Path(place) / "statistics")
        third = cases // 3
        drawn(changes(), third, number, lambda change: _plan(tally, model, plan, change))
        drawn(changes(), third, number, lambda change: _frontier(tally, model, frontier, change))
        drawn(
            changes(), cases - 2 * third, number, lambda change: _statistics(tally, model, Path(place) / "statistics", fingerprint, change)
        )


def _plan(tally: Tally, model: Path, plan: Any, change: Change) -> None:
    text = changed(plan, change)
    ended = _convert(tally, model, text, f"plan {change!r:.150}", "--plan")
    if ended.status == 0 and not _sound(json.loads(text)):
        tally.add("wrong", f"plan {change!r:.150}: accepted")


def _sound(data: Any) -> bool:
    """A reader of plans of its own: every value of the right type, every index text the one way to write its set."""
    numbers = [data["schema"], *data["sizes"].values(), *(number for grid in data["grids"] for number in grid)]
    for layer in data["layers"]:
        numbers += [layer["read_stride"], *(layer[name] for name in ("window", "kv_rank") if layer[name] is not None)]
        for name in ("read_heads", "self_heads", "neurons"):
            parts = [list(map(int, part.split("-"))) for part in layer[name].split(",")] if layer[name] else []
            indices = [index for part in parts for index in range(part[0], part[-1] + 1)]
            if indices != sorted(set(indices)) or any(part[0] > part[-1] for part in parts):
                return False
    return all(type(number) is int for number in numbers)


def _frontier(tally: Tally, model: Path, frontier: Any, change: Change) -> None:
    ended = _convert(tally, model, changed(frontier, change), f"frontier {change!r:.150}", "--frontier", "--budget", "0.2")
    if ended.status == 0 and cost(from_json(json.loads(ended.stdout)["plan"])).share > 0.2:
        tally.add("wrong", f"frontier {change!r:.150}: costs more than was asked")


def _statistics(tally: Tally, model: Path, base: Path, fingerprint: str, change: Change) -> None:
    from safetensors import safe_open

    with safe_open(base, framework="pt") as file:
        facts = json.loads(file.metadata()[METADATA_KEY]) | {"model": fingerprint}
    with TemporaryDirectory() as place:
        tensors = load_file(base)
        if change[0] == "add":  # a tensor's values, in the place of facts
            name = sorted(tensors)[change[1] % len(tensors)]
            tensors[name].view(-1)[change[1] % tensors[name].numel()] = -1
        text = changed(facts, change).decode(errors="replace")
        save_file(tensors, Path(place) / "file", {METADATA_KEY: text})
        data = (Path(place) / "file").read_bytes()
    kind = change[0]
    data = damaged(data, change) if kind in ("cut", "empty") else data
    recipe = ("--budget", "0.2", "--recipe", "interlaced", "--compensation", "none")
    ended = _convert(tally, model, data, f"statistics {change!r:.150}", "--statistics", *recipe)
    if ended.status == 0 and (kind == "add" or cost(from_json(json.loads(ended.stdout)["plan"])).share > 0.2):
        tally.add("wrong", f"statistics {change!r:.150}: accepted")


def _convert(tally: Tally, model: Path, data: bytes, what: str, option: str, *more: str) -> Ended:
    with TemporaryDirectory() as place:
        file = Path(place) / "file"
        file.write_bytes(data)
        words = ("convert", model, option, file, *more, "--dry-run", "--json", "-o", Path(place) / "out")
        ended = tally.judged(run(yopo(*words), Path(place)), what)
        if hidden(Path(place)) or file.read_bytes() != data:
            tally.add("leftovers", what)
        return ended
