"""Intervals and tests against slow, plain ways of computing them."""

from itertools import product
from random import Random

import numpy as np
import pytest
from support.scored import scored

from converters.evaluation.measures import ACCURACY
from converters.evaluation.statistics import PictureCounts, compare, intervals, mcnemar


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (3, 1), (1, 3), (0, 5), (4, 4), (7, 2)])
def test_mcnemar_counts_coin_tosses(lost: int, won: int) -> None:
    """Of all ways in which `lost + won` coins can fall, those at least as uneven."""
    tosses = [sum(way) for way in product((0, 1), repeat=lost + won)]
    uneven = sum(abs(2 * heads - lost - won) >= abs(lost - won) for heads in tosses)
    assert mcnemar(lost, won) == pytest.approx(uneven / len(tosses))


def test_mcnemar_of_thousands() -> None:
    assert 1e-18 < mcnemar(900, 1300) < 1e-16  # scipy's binomtest: 1.463722e-17
    assert mcnemar(6000, 6000) == 1


def sample(scores: dict[str, list[float]]) -> PictureCounts:
    return PictureCounts.of(
        [scored(f"{name}{place}", one, picture=name) for name, all_ in scores.items() for place, one in enumerate(all_)], ACCURACY
    )


def test_pictures_are_drawn_not_questions() -> None:
    """Ten alike questions about each of four pictures say as much as four questions."""
    many = sample({"a": [1.0] * 10, "b": [1.0] * 10, "c": [0.0] * 10, "d": [0.0] * 10})
    few = sample({"a": [1.0], "b": [1.0], "c": [0.0], "d": [0.0]})
    assert intervals(many) == intervals(few)
    assert intervals(many)["accuracy"].low == 0
    assert intervals(many)["accuracy"].high == 100


def test_the_bootstrap_is_that_of_the_textbook() -> None:
    random = Random(0)
    scores = {str(picture): [float(random.random() < 0.7) for _ in range(random.randint(1, 4))] for picture in range(30)}
    found = intervals(sample(scores))["accuracy"]
    drawn = []
    for _ in range(4000):
        chosen = [one for _ in scores for one in scores[str(random.randrange(30))]]
        drawn.append(100 * sum(chosen) / len(chosen))
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert found.low == pytest.approx(low, abs=1.5)
    assert found.high == pytest.approx(high, abs=1.5)


def test_one_picture_has_no_interval() -> None:
    assert intervals(sample({"a": [1.0, 0.0]}))["accuracy"].low is None


def test_what_both_have_in_common_does_not_widen_the_difference() -> None:
    """The same answers but for one question in 40, on pictures of very different difficulty."""
    dense = sample({str(place): [float(place % 2)] for place in range(40)})
    other = sample({str(place): [float(place % 2 and place != 1)] for place in range(40)})
    found = compare(dense, other)
    assert found.difference.value == -2.5
    assert (found.lost, found.won, found.test) == (1, 0, "McNemar")
    assert found.p_value == 1  # one coin cannot fall more unevenly
    assert found.retention is not None
    assert found.retention.value == pytest.approx(19 / 20)
    width = found.difference.high - found.difference.low  # type: ignore[operator]
    alone = intervals(dense)["accuracy"]
    assert width < (alone.high - alone.low) / 3  # type: ignore[operator]


def test_soft_scores_are_compared_by_the_paired_bootstrap() -> None:
    dense, other = sample({str(place): [1 / 3] for place in range(20)}), sample({str(place): [0.0] for place in range(20)})
    found = compare(dense, other)
    assert found.test == "paired bootstrap"
    assert found.p_value == pytest.approx(2 / 2001)  # no resample is on the other side
    assert found.lost is None


def test_nothing_right_leaves_nothing_to_keep() -> None:
    assert compare(sample({"a": [0.0], "b": [0.0]}), sample({"a": [1.0], "b": [0.0]})).retention is None
