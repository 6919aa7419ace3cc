"""Questions, pictures and chat templates: a picture is what a person sees, text is text, and a template that cannot be used is told."""

import json
import shutil
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from converters.data.formats import read_samples
from converters.errors import YopoError
from converters.loading import demo_folder

from .cases import Tally, hidden, run, yopo
from .mutations import Change, changed, changes, damaged, drawn

GOOD = {"image": "a.png", "question": "what color is the circle?", "answer": "red", "kind": "color"}
CHAT = {"images": ["a.png"], "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]}
TALK = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]}
# A mode, and what a pixel of a picture in one colour of it is to a person: half transparent red is pink on white.
COLOURS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "1": (1, (255, 255, 255)), "L": (100, (100, 100, 100)), "RGB": ((255, 0, 0), (255, 0, 0)), "RGBA": ((255, 0, 0, 51), (255, 204, 204)),
    "LA": ((0, 51), (204, 204, 204)), "I;16": (128 * 257, (128, 128, 128)), "CMYK": ((0, 0, 0, 0), (255, 255, 255)),
}  # fmt: skip
FORMATS = {
    "png": ("1", "L", "RGB", "RGBA", "LA", "I;16"),
    "tiff": ("1", "L", "RGB", "RGBA", "LA", "I;16", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L",),
}
PIECES = (
    "{{ messages[0]['content'] }}", "{% for part in messages[0]['content'] %}", "{% endfor %}", "{{ part['text'] }}", "<image>",
    "{{ 1 / 0 }}", "{% if part['type'] == 'text' %}", "{% endif %}", "{{ nothing.at.all }}", "{{ raise_exception('no') }}",
    "{% for a in range(99999) %}",
    "{{ messages + 1 }}", "{% set a = [] %}", "{{ ''.__class__ }}", "{%", "}}", "{{ 'a' * 99 }}", "{% include 'x' %}", "{{ eos_token }}",
)  # fmt: skip


def attack(tally: Tally, cases: int, number: int) -> None:
    with TemporaryDirectory() as place:
        Image.new("RGB", (16, 16)).save(Path(place) / "a.png")
        records = st.tuples(st.sampled_from((GOOD, GOOD, CHAT, TALK)), changes())
        sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))
        modes = st.sampled_from([(kind, mode) for kind, found in FORMATS.items() for mode in found])
        templates = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6)
        part = cases // 4
        drawn(records, part, number, lambda case: _lines(tally, Path(place), *case))
        drawn(st.tuples(modes, sizes, st.integers(1, 8)), part, number, lambda case: _picture(tally, *case))
        drawn(st.tuples(modes, changes()), part, number, lambda case: _damaged(tally, *case))
        drawn(templates, cases - 3 * part, number, lambda case: _template(tally, Path(place) / "a.png", "".join(case)))


def _lines(tally: Tally, folder: Path, record: Any, change: Change) -> None:
    """Read in a process of its own; a line that is accepted gives text, and pictures that are there."""
    file = folder / "questions.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + changed(record, change) + b"\n")

    def work() -> None:
        try:
            samples = read_samples(file)
        except YopoError as error:
            raise SystemExit(1 if error.message and error.hint else 99) from None
        for sample in samples:
            texts = (sample.question, sample.answer or "", sample.kind or "")
            assert all(isinstance(text, str) for text in texts), texts
            sample.pictures()

    with TemporaryDirectory() as place:
        ended = run(work, Path(place))
    tally.counts["tried"] += 1
    if ended.late or ended.status not in (0, 1):
        tally.add("hangs" if ended.late else "tracebacks", f"line {change!r:.150}: {ended.stderr.strip()[-300:]}")


def _encoded(kind: str, mode: str, size: tuple[int, int], orientation: int = 1) -> bytes:
    image, stream = Image.new(mode, size, COLOURS[mode][0]), BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(
        stream, kind, **({"exif": exif} if kind in ("png", "webp", "tiff") else {}), **({"lossless": True} if kind == "webp" else {})
    )
    return stream.getvalue()


def _picture(tally: Tally, form: tuple[str, str], size: tuple[int, int], orientation: int) -> None:
    from converters.data.decoding import decoded

    kind, mode = form
    expected = size[::-1] if orientation > 4 and kind != "gif" else size
    opened = decoded(BytesIO(_encoded(kind, mode, size, orientation)), "The picture")
    tally.counts["tried"] += 1
    colour = opened.getpixel((size[0] // 2 * 0, 0))
    if opened.size != expected or any(abs(one - other) > 2 for one, other in zip(colour, COLOURS[mode][1], strict=True)):  # type: ignore[arg-type]
        tally.add("wrong", f"{form} {size} {orientation}: {opened.size} {colour}")


def _damaged(tally: Tally, form: tuple[str, str], change: Change) -> None:
    from converters.data.decoding import open_picture

    kind = change[0] if change[0] in ("cut", "empty") else "byte"
    data = damaged(_encoded(*form, (20, 20)), (kind, change[1], len(str(change[2])) * 37 % 256))
    with TemporaryDirectory() as place:
        (Path(place) / "a").write_bytes(data)

        def work() -> None:
            try:
                open_picture(Path(place) / "a")
            except YopoError as error:
                raise SystemExit(1 if error.hint else 99) from None

        ended = run(work, Path(place))
    tally.counts["tried"] += 1
    if ended.late or ended.status not in (0, 1):
        tally.add("hangs" if ended.late else "tracebacks", f"{form} {change!r:.100}: {ended.stderr.strip()[-300:]}")


def _template(tally: Tally, picture: Path, template: str) -> None:
    with TemporaryDirectory() as place:
        model = Path(place) / "model"
        model.mkdir()
        for file in demo_folder().iterdir():
            (model / file.name).symlink_to(file)
        (model / "chat_template.jinja").unlink()
        (model / "chat_template.jinja").write_text(template)
        words = ("ask", model, "what color is the circle?", "--image", picture, "--max-new-tokens", 1, "--json")
        ended = tally.judged(run(yopo(*words), Path(place)), f"template {template}")
        if ended.status == 0 and template.count("<image>") != 1:
            tally.add("wrong", f"template {template}: accepted")
        shutil.rmtree(model)
        if hidden(Path(place)):
            tally.add("leftovers", f"template {template}")
