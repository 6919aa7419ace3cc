"""What a search shows where no terminal is."""

import pytest

from converters.planning.search.search import Report
from yopo_cli.ui import searching


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 29.0, 31.0, 31.0, 60.0])  # the bar opens; reports, of which the second is told
    monkeypatch.setattr(searching, "monotonic", lambda: next(clock))
    with searching.search_bar(0.1) as bar:
        for share in (0.9, 0.8, 0.7):
            bar.tell(Report("from dense", share, 0.01, 12.0, 400.0, 2 * 10**9, 0))
    shown = capsys.readouterr().err
    assert "Planning: 80.0% of visual FLOPs, shift 0.01 (12 of 400 passes, 2.0 GB held)\n" in shown
    assert "Planning: 90.0%" not in shown
