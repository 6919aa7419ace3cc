"""Questions about pictures in the forms that people have them in: lines or a list of JSON, or tables of parquet.

A record is one of ours ({image, question, answer}), a LLaVA conversation ({image, conversations}), a chat ({images, messages}) or a line of
LLaVA's question files ({image, text}); `video` or `videos` may stand in the pictures' place, or beside them. Each turn of a conversation
is a question of its own about its pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..json_files import conforming, parse_json, read_bytes
from .footage import Video, video, video_of
from .line import Line, Talk
from .pictures import Picture, bytes_of_base64, picture_base64
from .sample import FORMAT_HINT, Sample

MAX_FILE_BYTES, MAX_LINE_BYTES = 1 << 30, 1 << 20
HUB = "hub:"  # before a data set's name, where a file could be
BOM = b"\xef\xbb\xbf"
HEAD = 1000  # bytes that tell what a file is
SPEAKERS = {"human": "user", "gpt": "assistant"}
PLACES = tuple(form.format(name) for name in ("image", "video") for form in ("<{}>\n", "\n<{}>", "<{}>"))
VISUALS = ("image", "images", "video", "videos")
QUESTION_FILE = frozenset({"question_id", "text", "category"})
LOOKS_LIKE = {
    "questions": "the question file of VQAv2 (--task vqav2=FOLDER)",
    "annotations": "annotations of VQAv2 or COCO (--task vqav2=FOLDER)",
    "data": "the annotations of TextVQA (--task textvqa=FOLDER)",
}
"""A file that is one object, by a key of it."""

Record = Mapping[str, Any]


def read_samples(source: Path | str) -> list[Sample]:
    """All samples of a file, of a folder of parquet, of `hub:OWNER/NAME[@REVISION]/PATTERN`, or a few hundred of
    `hub:OWNER/NAME[@REVISION][:CONFIG[:SPLIT]]`; paths are relative to the file.

    Raises YopoError, with the place, for what is no record, an unknown key, a value of another kind, and a picture that is not there.
    """
    if str(source).startswith(HUB):
        return _from_tables(_fetched(str(source).removeprefix(HUB)))
    path = Path(source)
    if path.is_dir():
        return _from_tables(sorted(path.rglob("*.parquet")) or [path])
    if path.suffix == ".parquet":
        return _from_tables([path])
    return [sample for record, place in _records(path) for sample in _samples(record, path.parent, place, strict=True)]


def _fetched(name: str) -> list[Path]:
    """Whole files that match a pattern, else rows by range reads."""
    owner, _, rest = name.partition("/")
    repository, _, pattern = rest.partition("/")
    if not pattern:
        from .hub_rows import rows_file

        return [rows_file(name)]
    from .hub import snapshot

    repository, _, revision = repository.partition("@")
    return list(snapshot([f"{owner}/{repository}"], [pattern], revision or None).files)


def _from_tables(files: Sequence[Path]) -> list[Sample]:
    """Columns that are not ours are left alone: a table has what it has."""
    from .parquet import parquet_rows

    samples: list[Sample] = []
    for number, row in enumerate(parquet_rows(files)):
        given = {name: value for name, value in row.items() if value is not None}
        samples += _samples(given, files[0].parent, f"{files[0].name}, row {number}", strict=False)
    return samples


def _records(path: Path) -> Iterator[tuple[Record, str]]:
    """Objects of a JSON list, or of lines, with their places; a byte order mark and blank lines at the end are not minded."""
    data = read_bytes(path, "Pass questions as JSON in UTF-8, or as parquet.", MAX_FILE_BYTES).removeprefix(BOM).rstrip(b"\r\n ")
    if not data:
        raise YopoError(f"{path} is empty.", FORMAT_HINT)
    if data.startswith(b"["):
        for number, record in enumerate(parse_json(data, str(path), FORMAT_HINT), 1):
            yield _object(record, f"{path}, entry {number}"), f"{path}, entry {number}"
        return
    lines = data.split(b"\n")
    if b"\t" in lines[0] and not lines[0].startswith(b"{"):
        raise YopoError(f"{path} is not JSON: this looks like a table, as MMBench's (--task mmbench=FILE).", FORMAT_HINT)
    if known := next((name for name in LOOKS_LIKE if any(f'"{name}"{mark}['.encode() in data[:HEAD] for mark in (":", ": "))), None):
        raise YopoError(f"{path} is not a list of questions: this looks like {LOOKS_LIKE[known]}.", FORMAT_HINT)
    for number, line in enumerate(lines, 1):
        yield _parsed(line, f"{path}, line {number}"), f"{path}, line {number}"


def _parsed(line: bytes, place: str) -> Record:
    if not line.strip():
        raise YopoError(f"{place} is empty.", FORMAT_HINT)
    if len(line) > MAX_LINE_BYTES and b"base64," not in line:
        raise YopoError(f"{place} is longer than {MAX_LINE_BYTES:,} bytes.", FORMAT_HINT)
    return _object(parse_json(line, place, FORMAT_HINT), place)


def _object(data: Any, place: str) -> Record:
    if not isinstance(data, dict):
        raise YopoError(f"{place}: it is {data!r:.60}, but input should be a valid dictionary.", FORMAT_HINT)
    return data


def _samples(record: Record, folder: Path, place: str, *, strict: bool) -> Iterator[Sample]:
    """The questions of one record; with `strict`, one of ours may have no other keys than ours."""
    images = _visuals(record, folder, place)
    if turns := record.get("conversations") or record.get("messages"):
        talk = conforming(Talk, {"turns": turns, "kind": record.get("kind")}, place, FORMAT_HINT)
        yield from _conversation(talk, images, place)
        return
    words = {name: value for name, value in record.items() if name not in VISUALS}
    if "text" in words and "question" not in words and words.keys() <= QUESTION_FILE:
        words = {"question": words["text"], "kind": words.get("category", "")}
    if not strict:
        words = {name: value for name, value in words.items() if name in Line.model_fields}
    line = conforming(Line, words, place, FORMAT_HINT)
    yield Sample(images, line.question, line.expected, line.kind or None, place)


def _conversation(talk: Talk, images: Any, place: str) -> Iterator[Sample]:
    """Each question with the answer that follows it; what a system says is left out."""
    said = [(SPEAKERS.get(who := turn.speaker or turn.role or "", who), turn.words) for turn in talk.turns]
    for number, (who, words) in enumerate(said):
        if who == "user":
            answer = said[number + 1][1] if number + 1 < len(said) and said[number + 1][0] == "assistant" else None
            for mark in PLACES:
                words = words.replace(mark, "")
            yield Sample(images, words.strip(), answer, talk.kind, place if len(said) <= 2 else f"{place}, turn {number // 2 + 1}")


def _visuals(record: Record, folder: Path, place: str) -> Any:
    """The only picture or video, or a tuple of none or several: files, base64, or what a table holds."""
    given = record.get("images", record.get("image"))
    listed = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    film = record.get("video")
    filmed = [*([] if film is None else [film]), *(record.get("videos") or [])]
    visuals = (*(_image(one, folder, place) for one in listed), *(_video(one, folder, place) for one in filmed))
    return visuals[0] if len(visuals) == 1 else visuals


def _video(given: Any, folder: Path, place: str) -> Video:
    """A file, a folder of frames, base64, what a table holds, or the frames in a list."""
    if isinstance(given, Picture) and given.read is not None:
        return video_of(given.place, given.read)
    if isinstance(given, str) and given.startswith("data:video/"):
        return video_of(f"{place}: the video", lambda: bytes_of_base64(given, f"{place}: the video"))
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if strange := [one for one in listed if not isinstance(one, str)]:
        raise YopoError(f"{place}: video is {strange[0]!r:.60}, but input should be a valid string, or a list of frames.", FORMAT_HINT)
    files = [folder / one for one in listed]
    return video(files if isinstance(given, list | tuple) else files[0], f"{place}: the video")


def _image(given: Any, folder: Path, place: str) -> Path | Picture:
    if isinstance(given, Picture):
        return given
    if not isinstance(given, str):
        raise YopoError(f"{place}: image is {given!r:.60}, but input should be a valid string.", FORMAT_HINT)
    if given.startswith("data:image/"):
        return picture_base64(given, f"{place}: the image")
    if not (folder / given).is_file():
        raise YopoError(f"{place}: there is no image {folder / given}.", f"Image paths are relative to {folder}.")
    return folder / given
