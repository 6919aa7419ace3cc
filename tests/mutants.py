"""Plant faults in the code, one at a time, and count how many the tests catch: `python tests/mutants.py [WORD...]`.

A fault is a small change of one file (`mutants/*.toml`), with the tests that must fail because of it. Words choose faults whose file or
note contains one of them. Each fault is planted in a copy of the tree; tests run in a process forked from one that has imported the heavy
libraries, so that a fault takes seconds. Exit status 1 if the tests fail without any fault, or a fault's text is not in its file.
"""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
WORKERS = int(os.environ.get("MUTANT_WORKERS", "2"))
HEAVY = (
    "onnx", "onnx_ir", "pytest", "torch", "transformers.models.auto.modeling_auto", "transformers.models.llava.modeling_llava",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
)  # fmt: skip
LIMIT_SECONDS = 240  # for the tests of one fault: what takes longer does not end
ALL_SECONDS = 1800  # for the tests of all faults, one after the other


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new`, once, in `file`; `tests` must then fail. `note` says what is wrong."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    note: str

    @property
    def problem(self) -> str | None:
        """Why this fault cannot be planted; None if it can."""
        path = ROOT / self.file
        if not path.is_file():
            return "there is no such file"
        count = path.read_text(encoding="utf-8").count(self.old)
        return None if count == 1 else f"the text to change is there {count} times"


def read_faults(folder: Path) -> list[Fault]:
    """The faults of all files of a folder."""
    tables = [table for file in sorted(folder.glob("*.toml")) for table in tomllib.loads(file.read_text(encoding="utf-8"))["fault"]]
    return [Fault(table["file"], table["old"], table["new"], tuple(table["tests"]), table["note"]) for table in tables]


def copy_tree(target: Path) -> None:
    """The tracked and new files of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("benchmarks/study"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def import_heavy_libraries() -> None:
    """What every test would import again. No threads may run when a process forks."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in HEAVY:
        import_module(name)
    import_module("torch").set_num_threads(1)


def run_tests(tree: str, tests: Sequence[str]) -> None:
    """Run tests in the tree, silently, and leave the process with pytest's exit status."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path[:] = [tree, *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    with open(Path(tree) / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        import pytest

        sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def failed(tree: Path, tests: Sequence[str], limit_seconds: float = LIMIT_SECONDS) -> bool:
    """Whether the tests fail in the tree, or do not end in time."""
    process = get_context("fork").Process(target=run_tests, args=(str(tree), tests))
    process.start()
    process.join(limit_seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    return process.exitcode != 0


def caught(tree: Path, fault: Fault) -> bool:
    """Whether the tests notice the fault, which is taken back afterwards."""
    file = tree / fault.file
    right = file.read_text(encoding="utf-8")
    file.write_text(right.replace(fault.old, fault.new), encoding="utf-8")
    for cached in file.parent.glob(f"__pycache__/{file.stem}.*"):
        cached.unlink()
    try:
        return failed(tree, fault.tests)
    finally:
        file.write_text(right, encoding="utf-8")
        for cached in file.parent.glob(f"__pycache__/{file.stem}.*"):
            cached.unlink(missing_ok=True)


def work(faults: Sequence[tuple[int, Fault]], connection: object) -> None:
    """A worker: plant its faults in a copy of its own, and send what became of each."""
    send = connection.send  # type: ignore[attr-defined]
    with TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        for number, fault in faults:
            send((number, caught(Path(folder), fault)))


def results(faults: Sequence[Fault]) -> Iterator[tuple[Fault, bool]]:
    """Each fault and whether it was caught, as they come."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    parts = [list(enumerate(faults))[first::WORKERS] for first in range(WORKERS)]
    workers = [context.Process(target=work, args=(part, sender)) for part in parts if part]
    for worker in workers:
        worker.start()
    for _ in faults:
        number, was_caught = receiver.recv()
        yield faults[number], was_caught
    for worker in workers:
        worker.join()


def main(words: Sequence[str]) -> int:
    started = time.monotonic()
    every = read_faults(ROOT / "tests" / "mutants")
    faults = [fault for fault in every if not words or any(word in f"{fault.file} {fault.note}" for word in words)]
    if problems := [f"{fault.file}: {fault.note}: {fault.problem}" for fault in faults if fault.problem]:
        print("\n".join(problems), file=sys.stderr)
        return 1
    import_heavy_libraries()
    with TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        if failed(Path(folder), sorted({test for fault in faults for test in fault.tests}), ALL_SECONDS):
            print((Path(folder) / "output.txt").read_text()[-4000:], "The tests fail without any fault.", sep="\n", file=sys.stderr)
            return 1
    survivors = []
    for fault, was_caught in results(faults):
        print("caught  " if was_caught else "SURVIVED", fault.file, "-", fault.note, flush=True)
        survivors += [] if was_caught else [fault]
    count = len(faults) - len(survivors)
    print(f"{count} of {len(faults)} faults caught ({count / max(1, len(faults)):.0%}), {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
