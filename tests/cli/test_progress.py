"""What long work shows: a bar that fits the terminal, a line now and then in a log."""

import re

import pytest
from rich.text import Text

from converters.progress import Message, Progress, SearchProgress
from yopo_cli.ui import progress
from yopo_cli.ui.progress import figures, line, listening

SEARCH = SearchProgress(share=0.123, logit_drift=0.0123, passes=399, most_passes=400, memory_bytes=2 * 10**9, disk_bytes=0)


@pytest.mark.parametrize(
    ("event", "narrow", "usual"),
    [
        (SEARCH, "12.3%, 399/400", "12.3%, 399/400 passes, drift 0.012"),
        (Progress("Calibrating", 96, 128, "samples"), "96/128", "96/128 2.0/s"),
        (Progress("Healing", 7, 400, "steps", "divergence 0.50000"), "7/400", "7/400 2.0/s divergence 0.50000"),
        (Progress("Writing", 10**9, 2 * 10**9, "bytes"), "1.00 GB of 2.00 GB", "1.00 GB of 2.00 GB 2B/s"),
    ],
)
def test_figures_beside_a_bar(event, narrow: str, usual: str):
    assert figures(event, 40, 2.0) == narrow
    assert figures(event, 80, 2.0) == usual


def test_a_line_in_a_log():
    assert line(SEARCH, 120) == "Planning: 12.3% of visual FLOPs, logit drift 0.012 (399 of 400 passes, 2.0 GB held), 2 min left"
    assert line(Progress("Healing", 7, 400, "steps", "divergence 0.5"), None) == "Healing: 7 of 400 steps, divergence 0.5"


@pytest.mark.parametrize("width", [40, 80])
def test_share_passes_and_time_left_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Five quarters of an hour are left, with a bar of a longer name above."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr("rich.progress.Task.time_remaining", 4500.0)
    with listening() as listener:
        listener(Progress("Calibrating", 24, 24, "samples"))
        listener(SEARCH)
        listener(Message("A note."))
    shown = [Text.from_ansi(written).plain.rstrip() for written in capsys.readouterr().err.splitlines()]
    planning = [written for written in shown if written.startswith("Planning")]
    assert re.fullmatch(r"Planning +━+.* 12\.3%, 399/400.* 1:15:00", planning[-1])
    assert max(map(len, shown)) <= width
    assert "A note." in shown


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    clock = iter([0.0, 29.0, 31.0, 31.0, 60.0])  # it begins; events, of which the second is written
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with listening() as listener:
        for done in (1, 2, 3):
            listener(Progress("Calibrating", done, 128, "samples"))
    assert re.fullmatch(r"Calibrating: 2 of 128 samples(, \d+ min left)?\n", capsys.readouterr().err)
