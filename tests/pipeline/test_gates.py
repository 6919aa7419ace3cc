"""Gates by hand: what passes, what fails, what is not known, and how JUnit's XML tells it."""

from xml.etree import ElementTree

import pytest

from converters.errors import YopoError
from converters.pipeline.gates import gates, junit, results_of
from converters.pipeline.schema import EvaluationPart


def asked(**demands: float) -> EvaluationPart:
    return EvaluationPart.model_validate({"tasks": [{"task": "data/ours.jsonl", **demands}]})


def results(kept: float | None) -> dict:
    pruned = {"figures": {"accuracy": {"value": 90.0}}, "retention": None if kept is None else {"value": kept}, "changed": 0.25}
    return {"tasks": {"ours": {"sides": {"dense": {}, "pruned": pruned}}}}


@pytest.mark.parametrize(
    ("demands", "passed"),
    [
        ({"min_retention": 0.9}, True),
        ({"min_retention": 0.91}, False),
        ({"min_score": 90.0}, True),
        ({"min_score": 90.1}, False),
        ({"max_changed": 0.25}, True),
        ({"max_changed": 0.24}, False),
    ],
)
def test_a_limit_itself_passes(demands: dict[str, float], passed: bool) -> None:
    (gate,) = gates("pruned-0.25", asked(**demands), results(0.9))
    assert gate.passed is passed
    assert gate.task == "ours"


def test_without_demands_there_is_no_gate() -> None:
    assert not list(gates("pruned", asked(), results(0.9)))


def test_what_is_not_known_does_not_pass() -> None:
    (gate,) = gates("pruned", asked(min_retention=0.0), results(None))
    assert not gate.passed
    assert gate.sentence == "pruned, ours: retention is not known, at least 0 is asked for"


def test_junit() -> None:
    found = [*gates("one", asked(min_retention=0.95, max_changed=0.5), results(0.9)), *gates("<two>", asked(min_score=10), results(0.9))]
    root = ElementTree.fromstring(junit(found))
    assert root.attrib == {"name": "yopo", "tests": "3", "failures": "1", "errors": "0"}
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in root] == [("one", "2", "1"), ("<two>", "1", "0")]
    first, second = root[0]
    assert (first.get("name"), first.get("classname")) == ("ours: retention at least 0.95", "one")
    assert first[0].get("message") == "one, ours: retention is 0.9000, at least 0.95 is asked for"
    assert not len(second)


def test_answers_that_tell_no_results(tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"settings": {}}\n{"question": "1"}\n{"results": {"tasks": {}}}\n')
    assert results_of(answers) == {"tasks": {}}
    for text, sentence in (('{"settings": {}}\n', "has no results"), ('{"results": \n', "is not JSON")):
        answers.write_text(text)
        with pytest.raises(YopoError, match=sentence):
            results_of(answers)
