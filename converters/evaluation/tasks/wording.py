"""Words that several benchmarks share: the instructions after a question, and lengths of answers."""

from collections.abc import Iterable

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

CHECKPOINT, LLAVA = "checkpoint", "llava"
"""Protocols: lmms-eval's wording in the checkpoint's own template, and LLaVA's published one."""


def lengths(checkpoint: int, llava: int) -> dict[str, int]:
    """The longest answer in tokens, by protocol."""
    return {CHECKPOINT: checkpoint, LLAVA: llava}


def lmms_lab(name: str) -> tuple[str, ...]:
    """Where lmms-eval's data sets are: they moved on 30 July 2026, and older caches have them under the first name."""
    return f"lmms-lab-encoder/{name}", f"lmms-lab/{name}"


def present(values: Iterable[object]) -> list[str]:
    """The options before the first one that is missing: null, empty or, where a table was written from pandas, "nan"."""
    options: list[str] = []
    for value in values:
        if value is None or str(value).strip().lower() in ("", "nan"):
            break
        options.append(str(value))
    return options
