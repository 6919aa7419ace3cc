"""Two runs, killed runs and signals: at every moment the target is absent, the old one or the new one, and nothing else stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.checkpoint import folder as module
from converters.checkpoint.folder import appearing, check_apart, check_output, copy_file, scratch
from converters.checkpoint.interruption import uninterrupted
from converters.checkpoint.private import NEW, OLD, private_path, whole_file
from converters.checkpoint.renaming import exchange, rename_new
from converters.errors import YopoError


def write(output: Path, text: str, force: bool = False, meanwhile: Callable[[], object] = lambda: None) -> None:
    with appearing(output, force) as folder:
        (folder / "config.json").write_text(text)
        meanwhile()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "exchange", lambda first, second: False)


def test_the_first_of_two_runs_wins(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(YopoError, match="exists already"):
        write(output, "late", meanwhile=lambda: write(output, "early"))
    assert (output / "config.json").read_text() == "early"
    assert names(tmp_path) == ["out"]


def test_a_target_that_appears_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_check_free", lambda output, force: None)
    monkeypatch.setattr(module.os.path, "lexists", lambda path: False)
    (tmp_path / "out").mkdir()
    with pytest.raises(YopoError, match="appeared while it was written"):
        write(tmp_path / "out", "late")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == []


def test_two_live_runs_have_folders_of_their_own(tmp_path: Path) -> None:
    """Also with equal process numbers, as in two containers: a folder that is locked is not taken for dead."""
    output = tmp_path / "out"
    seen: list[str] = []

    def another() -> None:
        seen.extend(names(tmp_path))
        write(output, "third")

    def second() -> None:
        with pytest.raises(YopoError, match="exists already"):
            write(output, "second", meanwhile=another)

    with pytest.raises(YopoError, match="exists already"):
        write(output, "first", meanwhile=second)
    assert len(set(seen)) == 2
    assert (output / "config.json").read_text() == "third"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchanging", [True, False])
def test_force_leaves_the_new_one_alone(exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanging:
        without_exchange(monkeypatch)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_what_was_added_while_it_ran_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(YopoError, match="thesis"):
        write(tmp_path / "out", "new", force=True, meanwhile=lambda: (tmp_path / "out" / "thesis").write_text("years of work"))
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["SHA256SUMS", "config.json", "thesis"]


def test_an_exchange_of_two_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "b" / "2").mkdir(parents=True)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system has none")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["2"], ["1"])


@pytest.mark.parametrize("lacking", [True, False])
@pytest.mark.parametrize("what", ["file", "empty", "full"])
def test_renaming_replaces_nothing(what: str, lacking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking:
        monkeypatch.setattr("converters.checkpoint.renaming._renameat2", lambda source, target, flag: False)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.write_text("1") if what == "file" else target.mkdir()
    if what == "full":
        (target / "a").write_text("1")
    with pytest.raises(FileExistsError):
        rename_new(source, target)
    target.rename(tmp_path / "other")
    rename_new(source, target)
    assert names(tmp_path) == ["other", "target"]


def test_the_next_run_removes_what_killed_ones_left(tmp_path: Path) -> None:
    output, other = tmp_path / "out", tmp_path / "other"
    write(output, "1")
    left = [private_path(output, NEW), private_path(output, OLD), private_path(other, NEW)]
    for path in left:
        path.mkdir()
        (path / "model.safetensors").write_text("half")
    write(output, "2", force=True)
    assert names(tmp_path) == sorted(["out", left[2].name])


def test_the_next_run_restores_what_a_killed_one_was_replacing(tmp_path: Path) -> None:
    """Where there is no exchange, a run may be killed between its two renames."""
    output = tmp_path / "out"
    write(output, "old")
    output.rename(private_path(output, OLD))
    private_path(output, NEW).mkdir()
    with pytest.raises(YopoError, match="exists already"):
        check_output(output)
    assert (output / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_replacement_that_fails_half_way_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_exchange(monkeypatch)
    write(tmp_path / "out", "old")
    real, calls = rename_new, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(module, "rename_new", fail_once)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("inside", ["out", "deep/er/out", "."])
def test_an_output_inside_its_source(inside: str, tmp_path: Path) -> None:
    with pytest.raises(YopoError):
        check_apart(tmp_path, tmp_path / inside)
    with pytest.raises(YopoError, match="or holds it"):
        check_apart(tmp_path / inside, tmp_path)
    check_apart(tmp_path / "a", tmp_path / "ab")


def test_what_is_made_on_the_way_is_private(tmp_path: Path) -> None:
    (tmp_path / "out.unhealed").mkdir()
    with scratch(tmp_path / "out") as folder:
        (folder / "out").mkdir()
        assert folder.parent == tmp_path
    assert names(tmp_path) == ["out.unhealed"]


def test_only_small_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    for name, size in {"tokenizer.json": 7, "LICENSE": 1 << 40}.items():
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    copy_file(tmp_path / "tokenizer.json", tmp_path / "to")
    with pytest.raises(YopoError, match="LICENSE has 1,099,511,627,776 bytes"):
        copy_file(tmp_path / "LICENSE", tmp_path / "to")
    assert names(tmp_path / "to") == ["tokenizer.json"]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    private_path(tmp_path / "a").write_text("half")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a") as partial:
        partial.write_text("half" * (1 // 0))
    assert (tmp_path / "a").read_text() == "old"
    with whole_file(tmp_path / "a") as partial:
        partial.write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_signals_wait_and_only_the_first_is_raised() -> None:
    seen = []

    def interrupted() -> None:
        with uninterrupted() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("held")
            try:
                with signals.admitted():
                    seen.append("never")
            finally:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(os.getpid(), number)
                seen.append("cleaned")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["held", "cleaned"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_many_signals_while_cleaning(tmp_path: Path) -> None:
    """They arrive while a large folder is removed, and leave nothing of it."""
    script = (
        "import os, signal, sys, shutil; from pathlib import Path; from converters.checkpoint import private\n"
        "from converters.checkpoint.folder import appearing\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "real = shutil.rmtree\n"
        "def slow(path, **options):\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): os.kill(os.getpid(), number)\n"
        "    real(path, **options)\n"
        "private.shutil.rmtree = slow\n"
        "with appearing(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('1'); os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, check=False, timeout=60)
    assert b"KeyboardInterrupt" in done.stderr
    assert names(tmp_path) == []
