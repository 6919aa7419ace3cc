"""Steps on plain files: what is done, what is skipped, and what a killed run leaves to the next one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from converters.errors import YopoError
from converters.pipeline.steps import NOT_MADE, WORK, Forecast, Step, Workshop, claimed, record_file
from converters.progress import unheard


class Writes:
    """Writes a text, counts how often, and may end the run at a point."""

    def __init__(self, text: str = "one") -> None:
        self.text, self.times = text, 0

    def __call__(self, path: Path) -> None:
        self.times += 1
        path.write_text(self.text)


def step(make: Callable[[Path], None], output: str = "models/a", **inputs: object) -> Step:
    return Step("make a", output, inputs, make)


def workshop(folder: Path) -> Workshop:
    return Workshop(folder, unheard)


def test_what_is_finished_is_skipped_until_an_input_or_the_output_changes(tmp_path: Path) -> None:
    make = Writes()
    made = workshop(tmp_path)(step(make, model=1))
    assert made.path.read_text() == "one"
    again = workshop(tmp_path)
    assert again(step(make, model=1)) == made
    assert (make.times, again.outcomes[0].skipped) == (1, True)
    make.text = "two"
    assert workshop(tmp_path)(step(make, model=2)).sha256 != made.sha256
    assert make.times == 2
    made.path.write_text("by hand")
    assert workshop(tmp_path)(step(make, model=2)).path.read_text() == "two"
    assert make.times == 3
    made.path.unlink()
    workshop(tmp_path)(step(make, model=2))
    assert make.times == 4
    assert [path.name for path in (tmp_path / WORK).iterdir()] == ["steps"], "no private folder is left"


def test_a_step_that_failed_goes_on_with_what_it_had(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        notes = path.with_name("notes")
        if not notes.exists():
            notes.write_text("halfway")
            raise KeyboardInterrupt
        path.write_text(notes.read_text())

    with pytest.raises(KeyboardInterrupt):
        workshop(tmp_path)(step(make))
    assert not (tmp_path / "models").exists()
    assert workshop(tmp_path)(step(make)).path.read_text() == "halfway"


@pytest.mark.parametrize("killed", ["before the record", "before the place", "after the place"])
def test_killed_between_making_and_the_end_nothing_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    make = Writes()

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    point = {"before the record": "content_sha256", "before the place": "place", "after the place": "remove"}[killed]
    with monkeypatch.context() as patch:
        if killed == "after the place":
            patch.setattr("converters.pipeline.steps.remove", lambda path: kill() if path.parent.name == WORK else None)
        else:
            patch.setattr(f"converters.pipeline.steps.{point}", kill)
        with pytest.raises(KeyboardInterrupt):
            workshop(tmp_path)(step(make))
    assert workshop(tmp_path)(step(make)).path.read_text() == "one"
    assert make.times == 1
    assert [path.name for path in (tmp_path / WORK).iterdir()] == ["steps"]


def test_what_is_not_asked_for_any_more_goes(tmp_path: Path) -> None:
    first = workshop(tmp_path)
    for name in ("models/a", "models/b"):
        first(step(Writes(), name))
    (tmp_path / WORK / "0123456789abcdef").mkdir()  # of a run with other inputs that was killed
    second = workshop(tmp_path)
    second(step(Writes(), "models/b"))
    second.remove_others()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["b"]
    assert [path.name for path in (tmp_path / WORK).iterdir()] == ["steps"]
    assert not record_file(tmp_path, "models/a").exists()


def test_a_forecast_makes_nothing(tmp_path: Path) -> None:
    make = Writes()
    workshop(tmp_path)(step(make))
    forecast = Forecast(tmp_path)
    assert forecast(step(make)).sha256 != NOT_MADE
    assert forecast(step(make, "models/b")).sha256 == NOT_MADE
    assert [finished for _, finished in forecast.steps] == [True, False]
    assert make.times == 1


def test_one_run_at_a_time_and_no_folder_of_others(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out"),
        pytest.raises(YopoError, match="Another run is writing"),
        claimed(tmp_path / "out"),
    ):
        pass
    with claimed(tmp_path / "out"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(YopoError, match="not empty, and no pipeline's"), claimed(tmp_path / "mine"):
        pass
    with pytest.raises(YopoError, match="is not a folder"), claimed(tmp_path / "mine/thesis.tex"):
        pass
