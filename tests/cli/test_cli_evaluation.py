"""VQAv2's normalisation against cases worked out by hand from the evaluation server's rules, and the scores."""

import pytest

from converters.evaluation.scores import ComparedAnswer, Score, by_kind, normalise, score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Red", "red"),
        ("  red\n", "red"),
        ("red.", "red"),
        ("The red car", "red car"),
        ("an orange", "orange"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("yes, it is", "yes it is"),  # a comma next to a space goes
        ("black/white", "black white"),  # a mark inside a word becomes a space
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),  # digits grouped by a comma: every mark goes
        ("1,000-ton", "1000ton"),
        ("3.5", "3.5"),  # a period before a digit stays
        ("3.5 ft.", "3.5 ft"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("its", "its"),  # not a contraction in the server's list
        ("somebody'd", "somebodyd"),  # the server's own
        ("what?!", "what"),
        ("(left)", "left"),
        ("A", "a"),  # the letter of a choice: nothing else would be left
        ("", ""),
    ],
)
def test_normalisation(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_score_of_four_questions() -> None:
    answered = [
        ComparedAnswer("red", "red", "Red.", "color"),  # both right, not changed
        ComparedAnswer("2", "two", "3", "count"),  # lost, changed
        ComparedAnswer("yes", "no", "yes", "presence"),  # won, changed
        ComparedAnswer("4", "5", "5", "count"),  # both wrong, not changed
    ]
    assert score(answered) == Score(samples=4, dense=0.5, pruned=0.5, retention=1.0, answer_flips=0.5)
    kinds = by_kind(answered)
    assert list(kinds) == ["color", "count", "presence"]
    assert kinds["count"] == Score(2, 0.5, 0.0, 0.0, 0.5)
    assert kinds["presence"] == Score(1, 0.0, 1.0, None, 1.0)


def test_score_of_a_dense_model() -> None:
    assert score([ComparedAnswer("red", "red"), ComparedAnswer("red", "blue")]) == Score(2, 0.5, None, None, None)
    assert by_kind([ComparedAnswer("red", "red")]) == {}
