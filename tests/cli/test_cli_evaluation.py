"""VQAv2's normalisation against cases worked out by hand from the evaluation server's rules, and the scores."""

from collections.abc import Mapping, Sequence

import pytest
from PIL import Image

from converters.data.sample import Sample
from converters.evaluation.benchmarks import Evaluation
from converters.evaluation.metrics.vqa import short_form
from converters.evaluation.record import Record
from converters.evaluation.results import results
from converters.evaluation.samples_task import samples_task


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
    assert short_form(answer) == expected


def evaluated(answers: Mapping[str, Sequence[str]]) -> Evaluation:
    """Four questions about as many pictures; what each side said to them."""
    truths = ["red", "2", "yes", "4"]
    kinds = ["color", "count", "presence", "count"]
    picture = Image.new("RGB", (8, 8))
    samples = [Sample(picture, "?", truth, kind) for truth, kind in zip(truths, kinds, strict=True)]
    asked = samples_task(samples, None, 0)
    said = {
        ("samples", question.id): {side: words[place] for side, words in answers.items()} for place, question in enumerate(asked.questions)
    }
    record = Record(None, {"sides": [*answers]}, answers=said, facts={side: {} for side in answers})
    return Evaluation.of("samples", results(asked, record, None))


def test_four_questions() -> None:
    found = evaluated({"dense": ["red", "two", "no", "5"], "pruned": ["Red.", "3", "yes", "5"]})
    # Right as before (in other words), lost, won, wrong as before.
    assert (found.dense, found.pruned, found.retention) == (50, 50, 1.0)
    pruned = found.sides["pruned"]
    assert (pruned["questions"], pruned["lost"], pruned["won"], pruned["changed"]) == (4, 1, 1, 0.75)
    assert list(found.kinds) == ["color", "count", "presence"]
    count, presence = found.kinds["count"], found.kinds["presence"]
    assert (count.dense, count.pruned, count.retention, count.sides["pruned"]["changed"]) == (50, 0, 0, 0.5)
    assert (presence.dense, presence.pruned, presence.retention) == (0, 100, None)


def test_a_dense_model_has_one_side() -> None:
    found = evaluated({"dense": ["red", "3", "no", "5"]})
    assert (found.dense, found.pruned, found.retention) == (25, None, None)
    assert list(found.sides) == ["dense"]
