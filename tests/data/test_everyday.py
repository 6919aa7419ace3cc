"""The questions that models are calibrated on by default: all there, of known licences, and small."""

from collections import Counter
from pathlib import Path

import pytest

from converters.data import everyday
from converters.data.samples import samples_of
from converters.data.split import SampleSplit
from converters.errors import YopoError
from tools.everyday.drawings import drawings
from tools.everyday.photographs import PHOTOGRAPHS


def test_what_ships() -> None:
    found = list(samples_of(everyday.NAME, answers=False).stream())
    asked = Counter(Path(str(one.image)).name for one in found)
    assert len(found) == 268
    assert min(asked.values()) == 5
    photographs = {f"{one.name}.jpg" for one in PHOTOGRAPHS}
    assert asked.keys() == photographs | {f"{one.name}.png" for one in drawings()}
    assert len(photographs) == len(asked) / 2 == 24
    assert sum(file.stat().st_size for file in everyday.FOLDER.iterdir()) < 2_000_000
    licences = (everyday.FOLDER / "LICENSES.md").read_text()
    assert all(f"| {one.name}.jpg | {one.file} | {one.credit} | {one.licence} |" in licences for one in PHOTOGRAPHS)
    assert {one.licence.split(",")[0] for one in PHOTOGRAPHS} == {"public domain", "CC0 1.0", "CC BY 2.0"}
    sizes = {one.picture().size for one in found[::12]}
    assert len(sizes) > 3


def test_samples_to_plan_on_and_others() -> None:
    split = SampleSplit.of(everyday.NAME, 128, 0)
    seen, unseen = ({one.place for one in split.chosen(unseen=others).stream()} for others in (False, True))
    assert (len(seen), len(unseen), split.unseen) == (128, 140, 140)
    assert not seen & unseen
    assert SampleSplit.of(everyday.NAME, 1000, 0).unseen == 0
    with pytest.raises(YopoError, match="no answers to compare with"):
        samples_of(everyday.NAME, answers=True)
