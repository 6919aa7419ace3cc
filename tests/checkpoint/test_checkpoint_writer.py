"""Writing: the format by hand, shards, hashes, and a folder that appears whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converters.checkpoint.folder import appearing, check_output, check_space
from converters.checkpoint.manifest import added_files, changed_files, list_sha256, manifest_text, read_manifest, write_manifest
from converters.checkpoint.writer import Entry, Shard, check_finite, header_bytes, index_text, plan_shards, write_shard
from converters.errors import YopoError


def test_the_header_by_hand() -> None:
    shard = Shard("x", (Entry("a", "F32", (2, 3)), Entry("b", "BF16", ())))
    data = header_bytes(shard)
    assert len(data) % 8 == 0
    assert int.from_bytes(data[:8], "little") == len(data) - 8
    assert json.loads(data[8:]) == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    }


def test_shards_hold_at_most_so_much_and_layers_stay_in_order() -> None:
    entries = [Entry(f"layers.{index}.w", "F16", (5,)) for index in (10, 9, 0)]
    shards = plan_shards(entries, 20)
    assert [[entry.name for entry in shard.entries] for shard in shards] == [["layers.0.w", "layers.9.w"], ["layers.10.w"]]
    assert [shard.file for shard in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert json.loads(index_text(shards))["metadata"] == {"total_size": 30}
    assert json.loads(index_text(shards))["weight_map"]["layers.10.w"] == shards[1].file
    assert plan_shards(entries)[0].file == "model.safetensors"
    assert len(plan_shards(entries, 1)) == 3


def test_wider_dtypes_come_first_so_that_all_are_aligned() -> None:
    (shard,) = plan_shards([Entry("a", "F16", (1,)), Entry("b", "F32", (1,)), Entry("c", "F16", (1,))])
    assert [entry.name for entry in shard.entries] == ["b", "a", "c"]


def test_a_written_shard_is_read_by_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(2.0, dtype=torch.bfloat16), "c": torch.zeros(0, 4)}
    entries = [Entry("a", "F32", (3, 2)), Entry("b", "BF16", ()), Entry("c", "F32", (0, 4))]
    counts: list[int] = []
    (shard,) = plan_shards(entries)
    digest = write_shard(tmp_path, shard, tensors.__getitem__, counts.append)
    loaded = load_file(tmp_path / shard.file)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert digest == hashlib.sha256((tmp_path / shard.file).read_bytes()).hexdigest()
    assert sum(counts) == 26


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 37, 98])
def test_values_that_are_not_finite(dtype: torch.dtype, value: float, place: int) -> None:
    tensor = torch.zeros(99, dtype=dtype)
    check_finite("w", tensor)
    tensor[place] = value
    with pytest.raises(YopoError, match="'w' holds 1 values that are NaN or infinite"):
        check_finite("w", tensor)


def test_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    files = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in "ab"}
    (tmp_path / "SHA256SUMS").write_text(manifest_text(files))
    assert read_manifest(tmp_path) == files
    assert changed_files(tmp_path, files) == ()
    (tmp_path / "a").write_text("3")
    (tmp_path / "b").unlink()
    assert changed_files(tmp_path, files) == ("a", "b")
    (tmp_path / "c").write_text("4")
    assert added_files(tmp_path, files) == ("c",)
    assert list_sha256(files | {"config.json": "0" * 64}) == hashlib.sha256(manifest_text(files).encode()).hexdigest()


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  ../a", "0" * 64 + "  /a", "0" * 64 + "  .", "0" * 64 + "  a\n" + "0" * 64 + "  a"])
def test_lines_that_list_no_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(YopoError, match="line [12]: not a sha256"):
        read_manifest(tmp_path)


def write_ones(folder: Path) -> None:
    (folder / "config.json").write_text("new")


def break_off(output: Path, error: BaseException, force: bool = False) -> None:
    with appearing(output, force) as folder:
        write_ones(folder)
        raise error


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with appearing(tmp_path / "out") as folder:
        write_ones(folder)
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_manifest(tmp_path / "out").keys() == {"config.json"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_whatever_happens_nothing_is_left_behind(error: type[BaseException], force: bool, tmp_path: Path) -> None:
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("old")
        write_manifest(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error):
        break_off(tmp_path / "out", error(), force)
    assert sorted(tmp_path.rglob("*")) == before
    assert not force or (tmp_path / "out" / "config.json").read_text() == "old"


def test_force_replaces_a_checkpoint_only(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with appearing(output, force=True) as folder:
        write_ones(folder)
    with pytest.raises(YopoError, match="exists already") as raised, appearing(output):
        pass
    assert "--force" in raised.value.hint
    with appearing(output, force=True) as folder:
        (folder / "config.json").write_text("newer")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["SHA256SUMS", "config.json", "out"]
    assert (output / "config.json").read_text() == "newer"


@pytest.mark.parametrize("name", ["thesis.tex", ".git/HEAD", "deep/er/picture.png", "link"])
def test_force_replaces_nothing_that_is_not_ours(name: str, tmp_path: Path) -> None:
    """A checkpoint with anything else in it stays as it is, and the file in question is named."""
    output = tmp_path / "out"
    with appearing(output) as folder:
        write_ones(folder)
    foreign = output / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.symlink_to(tmp_path, True) if name == "link" else foreign.write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(YopoError, match=rf"out is not replaced: {name} in it is not of ours"), appearing(output, force=True):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_no_folder_without_a_list(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_ones(tmp_path / "out")
    with pytest.raises(YopoError, match="config.json in it is not of ours"), appearing(tmp_path / "out", force=True):
        pass
    with pytest.raises(YopoError, match="is not a folder"), appearing(tmp_path / "out" / "config.json", force=True):
        pass


def test_the_parent_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="does not exist"), appearing(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(number: int, tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="The disk is full"):
        break_off(tmp_path / "out", OSError(number, "full"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(YopoError, match="may not be written"):
        check_output(tmp_path / "out")


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(YopoError, match="may not be written: Permission denied"), appearing(tmp_path / "out"):
        pass


def test_too_little_space_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 0, 10**9))
    check_space(tmp_path / "out", 10**9)
    with pytest.raises(YopoError, match=r"has 1\.00 GB free, 2\.00 GB are needed"):
        check_space(tmp_path / "out", 2 * 10**9)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import signal, sys, time; from pathlib import Path; from converters.checkpoint.folder import appearing\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # not as nohup left them
        "with appearing(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('1'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        assert list(tmp_path.rglob("a"))
        start = time.monotonic()
        process.send_signal(number)
        assert b"KeyboardInterrupt" in process.stderr.read()
    assert time.monotonic() - start < 30
    assert not list(tmp_path.iterdir())


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with appearing(tmp_path / "out"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
