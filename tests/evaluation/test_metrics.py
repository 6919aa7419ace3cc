"""How answers are read and scored, on cases worked out by hand from the published code."""

import pytest

from converters.evaluation.metrics.letters import lettered, mmbench_letter, mmmu_letter, opening_letter, scienceqa_letter
from converters.evaluation.metrics.text import anls, contained, gqa_equal, open_equal, relaxed_equal
from converters.evaluation.metrics.vqa import m4c_form, server_form, textvqa_score, vqa_score
from converters.evaluation.metrics.yes_no import mme_word, pope_yes


@pytest.mark.parametrize(
    ("answer", "server", "m4c"),
    [
        ("The Dog.", "dog", "dog"),
        ("two dogs", "2 dogs", "2 dogs"),
        ("dog's bowl", "dog's bowl", "dog 's bowl"),  # M4C parts a possessive
        ("yes, it is", "yes it is", "yes it is"),
        ("a,b", "b", "ab"),  # the server makes a space of the comma, and then an article of the a; M4C takes it out
        ("1,000", "1000", "1000"),
        ("black/white", "black white", "black white"),
        ("t-shirt -red", "tshirt red", "tshirt red"),
        ("dont", "don't", "don't"),
        ("A", "", ""),
        ("3.5 ft.", "3.5 ft", "3.5 ft"),
        ("." * 33, ".", "."),  # 32 periods go, no more
    ],
)
def test_normal_forms(answer: str, server: str, m4c: str) -> None:
    assert server_form(answer) == server
    assert m4c_form(answer) == m4c


def test_vqa_score_of_ten_people() -> None:
    people = ["red"] * 2 + ["dark red"] * 8
    assert vqa_score("Red", ["red"] * 10) == 1
    # Each of the two is left out once, then one match is left: 1/3; for the other eight both are there: 2/3.
    assert vqa_score("Red.", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_score("dark red", people) == 1
    assert vqa_score("blue", people) == 0


def test_unanimous_people_are_compared_as_they_wrote() -> None:
    assert vqa_score("2", ["two"] * 10) == 0
    assert vqa_score("2", ["two"] * 9 + ["3"]) == 1
    assert textvqa_score("2", ["two"] * 10) == 1


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is", False),
        ("It is not.", False),
        ("Certainly. No doubt.", True),
        ("Nope", True),
        ("", True),
    ],
)
def test_pope_reads_the_first_sentence(answer: str, yes: bool) -> None:
    assert pope_yes(answer) is yes


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, it is", "yes"),
        (" yes", "yes"),
        ("A yes", None),
        ("know", "no"),  # "no" is within it
        ("", None),
    ],
)
def test_mme_reads_four_characters(answer: str, word: str | None) -> None:
    assert mme_word(answer) == word


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("B. blue", "B"), ("The answer is B.", "B"), ("blue", None), ("C", None), ("b", None), ("B.", None), ("", None)],
)
def test_scienceqa_letter(answer: str, letter: str | None) -> None:
    assert scienceqa_letter(answer, ("red", "blue")) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("The answer is B: blue", "B"),
        ("blue", "B"),
        ("It is blue.", "B"),
        ("A or B", None),  # two letters, and no option's text
        ("A cat that sits on a red mat outside", "A"),  # the only text: the letter is not among the last five words
        ("green", None),
    ],
)
def test_mmbench_letter(answer: str, letter: str | None) -> None:
    assert mmbench_letter(answer, ("red mat", "blue", "white sofa")) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(A) or rather (B)", "B"),  # the last one
        ("A, no: B .", "B"),
        ("B. blue", "B"),
        ("I think that it must be blue", "B"),
        ("It is blue", None),  # too short to be searched for texts
        ("Neither of them, and nothing else either", None),
    ],
)
def test_mmmu_letter(answer: str, letter: str | None) -> None:
    assert mmmu_letter(answer, ("red", "blue")) == letter


def test_letters_of_options() -> None:
    assert lettered(["red", "blue"]) == "A. red\nB. blue"
    assert [opening_letter(answer) for answer in ("B", "b.", " B. blue", "(B)", "blue")] == ["B", "B", "B", "B", "BLUE"]


def test_gqa_lowers_the_answer_alone() -> None:
    assert gqa_equal("Yes.", "yes")
    assert not gqa_equal("two", "2")


def test_anls() -> None:
    assert anls("Total  $45", ["total $45", "45"]) == 1
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)  # three edits, seven letters
    assert anls("cat", ["dog"]) == 0
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("abc", ["axy"]) == 0  # a third is below a half


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("45%", "0.45", True),
        ("0", "0", True),
        ("0.0", "0", False),  # a truth of 0 is compared as text
        ("Blue ", "blue", True),
        ("blue", "100", False),
    ],
)
def test_relaxed(answer: str, truth: str, equal: bool) -> None:
    assert relaxed_equal(answer, truth) is equal


def test_contained() -> None:
    assert contained("The sign says STOP\nHERE", ["stop here"])
    assert not contained("halt", ["stop"])
    assert contained("x ^ 2", ["x^2"], exact_case=True)
    assert not contained("X^2", ["x^2"], exact_case=True)


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("The result is 3.14159", "3.14", True),
        ("so the answer is 1,200 dollars.", "1200", True),
        ("3.2", "3.1", False),
        ("It is a Gothic cathedral", "gothic", True),
        ("Baroque", "['rococo', 'baroque']", True),
        ("x = 7", "7", True),
        ("apple", "p", False),  # one letter is looked for as a word
    ],
)
def test_open_answers(answer: str, truth: str, equal: bool) -> None:
    assert open_equal(answer, truth) is equal
