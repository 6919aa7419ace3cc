"""A few hundred rows of a data set, from a Hub on loopback: which files, which rows, and how few bytes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from PIL import Image
from support.hub_server import Hub, Repository, hub

from converters.data.hub_rows import HubRows, _chosen, _tables
from converters.errors import YopoError

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

NAME = "someone/questions"
SCRIPT = """
import json, sys
from converters.data.samples import samples_of
from converters.errors import YopoError
for name in sys.argv[1:]:
    try:
        found = list(samples_of(name, answers=False).stream())
        answer = {"questions": [one.question for one in found], "last": found[-1].picture().size}
    except YopoError as error:
        answer = {"message": error.message, "hint": error.hint}
    print(json.dumps(answer))
"""


def shard(first: int, rows: int, group: int) -> bytes:
    """A table of pictures of noise, which compress badly, and of a column that nobody reads."""
    noise = numpy.random.default_rng(first)
    pictures = []
    for _ in range(rows):
        buffer = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (24, 20, 3), dtype=numpy.uint8)).save(buffer, "png")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": pictures, "question": [f"{first + row}?" for row in range(rows)], "other": [noise.bytes(2000) for _ in range(rows)]}
    data = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), data, row_group_size=group)
    return data.getvalue()


@pytest.fixture(scope="module")
def shards() -> dict[str, bytes]:
    return {f"data/train-0000{number}-of-00002.parquet": shard(10_000 * number, 3000, 100) for number in range(2)}


def ask(server: Hub, home: Path, *names: str, **more: str) -> list[dict[str, Any]]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    environment = keep | {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | more
    command = [sys.executable, "-c", SCRIPT, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_few_bytes_of_a_shard(shards: dict[str, bytes], tmp_path: Path) -> None:
    size = sum(map(len, shards.values()))
    with hub({f"datasets/{NAME}": Repository({"main": shards})}) as server:
        (found,) = ask(server, tmp_path, f"hub:{NAME}")
        assert server.sent < size / 8
        sent = server.sent
        assert ask(server, tmp_path, f"hub:{NAME}:default:train")[0] == found
        again = server.sent
        assert ask(server, tmp_path, f"hub:{NAME}") == [found]
        assert server.sent == again > sent
    expected = [f"{start + row}?" for start in (0, 1500, 10_000, 11_500) for row in range(100)]
    assert found == {"questions": expected, "last": [20, 24]}
    assert ask(server, tmp_path, f"hub:{NAME}", HF_HUB_OFFLINE="1") == [found]


def test_what_is_said_of_others(shards: dict[str, bytes], tmp_path: Path) -> None:
    data = io.BytesIO()
    parquet.write_table(pyarrow.table({"caption": ["a"], "picture": ["b"]}), data)
    with hub({f"datasets/{NAME}": Repository({"main": {"a.parquet": data.getvalue()}})}) as server:
        other, missing, wrong = ask(server, tmp_path, f"hub:{NAME}", "hub:someone/nothing", "hub:nothing")
    assert other["message"] == f"No column of {NAME} is a question: it has caption, picture."
    assert "no data set someone/nothing" in missing["message"]
    assert wrong["message"] == "hub:nothing names no data set."


def tables(*files: str, card: Any = None) -> dict[str, dict[str, list[str]]]:
    return _tables(SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files], card_data=card))


def test_configurations_and_splits() -> None:
    """By the names that files have, or as the card says."""
    assert tables("data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet", "README.md") == {
        "default": {"test": ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]}
    }
    by_folder = tables("a/train/0000.parquet", "a/test/0000.parquet", "b/train-00000-of-00001.parquet")
    assert by_folder == {
        "a": {"test": ["a/test/0000.parquet"], "train": ["a/train/0000.parquet"]},
        "b": {"train": ["b/train-00000-of-00001.parquet"]},
    }
    card = {"configs": [{"config_name": "x", "data_files": [{"split": "all", "path": "rows/*"}]}]}
    assert tables("rows/1.parquet", "else.parquet", card=card) == {"x": {"all": ["rows/1.parquet"]}}
    assert _chosen(HubRows.of(f"{NAME}:a"), by_folder) == ["a/train/0000.parquet"]
    assert _chosen(HubRows.of(f"{NAME}@v1:a:test"), by_folder) == ["a/test/0000.parquet"]
    for asked, message, hint in (
        (NAME, "several configurations", "There are: a, b."),
        (f"{NAME}:c", "no configuration c", "There are: a, b."),
        (f"{NAME}:b:test", "no split test", "There are: train."),
    ):
        with pytest.raises(YopoError, match=message) as caught:
            _chosen(HubRows.of(asked), by_folder)
        assert hint in (caught.value.hint or "")
    with pytest.raises(YopoError, match="no parquet files"):
        _chosen(HubRows.of(NAME), {})
