"""Figures of the published benchmarks from scores, by hand."""

from collections.abc import Iterable

import pytest
from support.scored import scored

from converters.evaluation.measures import ACCURACY, CIRCULAR, MEAN_OF_KINDS, MME, POINTS, POPE
from converters.evaluation.statistics import PictureCounts
from converters.evaluation.task import Measure, Scored


def figures(measure: Measure, answers: Iterable[Scored]) -> dict[str, float]:
    return PictureCounts.of(list(answers), measure).figures()


def test_accuracy_and_points() -> None:
    answers = [scored("a", 1), scored("b", 0), scored("c", 1 / 3)]
    assert figures(ACCURACY, answers)["accuracy"] == pytest.approx(100 * (4 / 3) / 3)
    assert figures(POINTS, answers)["points"] == pytest.approx(4 / 3)


def test_pope_is_the_mean_of_the_splits() -> None:
    """Random: yes said rightly twice, once wrongly; no once rightly. Popular: a yes missed, a no right."""
    answers = [
        scored("1", 1, truth="yes", kind="random"),
        scored("2", 1, truth="yes", kind="random"),
        scored("3", 0, truth="no", kind="random"),
        scored("4", 1, truth="no", kind="random"),
        scored("5", 1, truth="yes", kind="popular"),
        scored("6", 0, truth="yes", kind="popular"),
        scored("7", 1, truth="no", kind="popular"),
    ]
    random = {"f1": 4 / 5, "accuracy": 3 / 4, "precision": 2 / 3, "recall": 1, "yes": 3 / 4}
    popular = {"f1": 2 / 3, "accuracy": 2 / 3, "precision": 1, "recall": 1 / 2, "yes": 1 / 3}
    assert figures(POPE, answers) == pytest.approx({name: 50 * (random[name] + popular[name]) for name in random})


def test_mme_adds_rows_and_pairs() -> None:
    """Two pictures of one category, one with both right: 100 * 3/4 + 100 * 1/2; and a pair of a cognition category, both right: 200."""
    answers = [scored(f"{picture}{row}", score, kind="count", unit=picture, picture=picture) for picture, row, score in
               (("a", 0, 1), ("a", 1, 1), ("b", 0, 1), ("b", 1, 0))]  # fmt: skip
    assert figures(MME, answers) == {"perception": 125}
    answers += [scored(f"c{row}", 1, kind="code_reasoning", unit="c", picture="c") for row in (0, 1)]
    assert figures(MME, answers) == {"perception": 125, "cognition": 200}


def test_a_lone_question_of_a_pair_is_not_both() -> None:
    assert figures(MME, [scored("a0", 1, kind="count", unit="a")]) == {"perception": 100}


def test_circular() -> None:
    """Three rotations right of three; three of four."""
    answers = [scored(f"a{turn}", 1, unit="a") for turn in range(3)] + [scored(f"b{turn}", float(turn < 3), unit="b") for turn in range(4)]
    assert figures(CIRCULAR, answers) == pytest.approx({"circular": 50, "rows": 100 * 6 / 7})


def test_mean_of_kinds_counts_kinds_alike() -> None:
    answers = [scored("a", 1, kind="x"), scored("b", 0, kind="y"), scored("c", 0, kind="y")]
    assert figures(MEAN_OF_KINDS, answers) == {"accuracy": 50}
