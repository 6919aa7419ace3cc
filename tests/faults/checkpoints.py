"""Damaged checkpoints: whatever is refused is refused with a sentence, and whatever is converted has the weights of its source."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

from hypothesis import strategies as st
from support.checkpoints import listing, save_model
from support.eight_bits import quantised
from support.random_plans import random_plan

from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.runtime.plan import Grid, to_json

from .cases import Tally, hidden, run, yopo
from .mutations import FILES, Change, changed, changes, damaged, drawn

LAYOUTS = {"one": {}, "shards": {"shards": 2}, "bin": {"binary": True}}
DOCUMENTS = (
    *[("shards", "config.json")] * 3, ("shards", "model.safetensors.index.json"), ("shards", "header"),
    *[("quantised", "config.json")] * 2, ("quantised", "header"),
)  # fmt: skip


def attack(tally: Tally, cases: int, number: int) -> None:
    """Convert so many checkpoints, each with something wrong in it."""
    with TemporaryDirectory() as place:
        bases = {name: Path(place) / name for name in LAYOUTS}
        for name, options in LAYOUTS.items():
            save_model(bases[name], **options)
        bases["quantised"] = quantised(Path(place) / "quantised", "int8")
        plan = Path(place) / "plan.json"
        plan.write_text(json.dumps(to_json(random_plan(open_checkpoint(bases["one"]).sizes, 0, (Grid(4, 4),)))))
        what = st.tuples(st.sampled_from(DOCUMENTS), changes())
        files = st.tuples(st.sampled_from(sorted(LAYOUTS)), st.integers(0, 20), st.sampled_from(sorted(FILES)))
        pickles = st.tuples(st.just("bin"), changes())
        third = cases // 4
        drawn(what, cases - 2 * third, number, lambda case: _document(tally, bases[case[0][0]], plan, case[0][1], case[1]))
        drawn(files, third, number, lambda case: _file(tally, bases[case[0]], plan, *case[1:]))
        drawn(pickles, third, number, lambda case: _pickle(tally, bases["bin"], plan, case[1]))


def _document(tally: Tally, base: Path, plan: Path, document: str, change: Change) -> None:
    def harm(folder: Path) -> None:
        if document == "header":
            _change_header(min(folder.glob("*.safetensors")), change)
        else:
            (folder / document).write_bytes(changed(json.loads((folder / document).read_text()), change))

    _convert(tally, base, plan, harm, f"{base.name} {document} {change!r:.200}")


def _change_header(file: Path, change: Change) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = changed(json.loads(data[8 : 8 + length]), change)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _file(tally: Tally, base: Path, plan: Path, index: int, kind: str) -> None:
    def harm(folder: Path) -> None:
        files = sorted(folder.iterdir())
        FILES[kind](files[index % len(files)])

    _convert(tally, base, plan, harm, f"file {index} {kind}")


def _pickle(tally: Tally, base: Path, plan: Path, change: Change) -> None:
    def harm(folder: Path) -> None:
        file = folder / "pytorch_model.bin"
        kind, place, value = change
        # Most bytes are weights, whose values may be anything: the pickle is at the beginning.
        file.write_bytes(
            damaged(file.read_bytes(), (kind if kind in ("cut", "empty") else "byte", place % 12000, crc32(str(value).encode()) % 256))
        )

    _convert(tally, base, plan, harm, f"bin {change!r:.100}")


def _convert(tally: Tally, base: Path, plan: Path, harm: Any, what: str) -> None:
    with TemporaryDirectory() as place:
        source, target = Path(place) / "source", Path(place) / "out"
        shutil.copytree(base, source)
        harm(source)
        before = _names(source)
        ended = tally.judged(run(yopo("convert", source, "--plan", plan, "-o", target), Path(place)), what)
        if _names(source) != before:
            tally.add("wrong", f"{what}: the source was changed")
        if hidden(Path(place)) or (ended.status != 0 and target.exists()):
            tally.add("leftovers", f"{what}: {hidden(Path(place))}")
        if ended.status == 0 and open_converted(target).dense_fingerprint() != open_checkpoint(source).fingerprint():
            tally.add("wrong", f"{what}: other weights were written")


def _names(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, os.lstat(path).st_size) for path in folder.iterdir())


def same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files."""
    return listing(first) == listing(second)
