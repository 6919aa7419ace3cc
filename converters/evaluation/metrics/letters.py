"""Which option of a multiple choice an answer names. None: none, or it cannot be told."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST_WORDS = 5  # a letter counts only among the last ones: "A" opens many a sentence
SAID = re.compile(r"The answer is ([A-Z]).")
OPENING = re.compile(r"\s*([A-Z])\.")


def lettered(options: Sequence[str]) -> str:
    """Options as the published prompts show them, a line each: `A. red`."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def scienceqa_letter(answer: str, options: Sequence[str]) -> str | None:
    """LLaVA's rule (eval_science_qa.py): a letter of A to E alone, or followed by a period and a space, or in "The answer is X."."""
    if answer in list("ABCDE"):
        letter = answer
    elif len(answer) >= 3 and answer[0] in "ABCDE" and answer[1:3] == ". ":
        letter = answer[0]
    else:
        said = SAID.findall(answer)
        letter = said[0] if len(said) == 1 else ""
    return letter if letter and letter in ascii_uppercase[: len(options)] else None


def mmbench_letter(answer: str, options: Sequence[str]) -> str | None:
    """VLMEvalKit's rule (can_infer) without a judge: the only option letter among the words, within the last five; else the only
    option whose text is in the answer."""
    letters = ascii_uppercase[: len(options)]
    words = answer.translate(MARKS).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - LAST_WORDS:
        return named[0]
    if len(answer) > 2 * sum(map(len, options)):
        return None
    written = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in answer.lower()]
    return written[0] if len(written) == 1 else None


def mmmu_letter(answer: str, options: Sequence[str]) -> str | None:
    """MMMU's rule (eval_utils): the last option named as (A), else as A between spaces, else as "A."; in an answer of more than five
    words, else the option whose text comes last. The published code draws one at random where there is none."""
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text, letters = f" {text} ", ascii_uppercase[: len(options)]
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if named := [letter for letter in letters if form.format(letter) in text]:
            return max(named, key=lambda letter, place=place: text.rfind(place.format(letter)))  # type: ignore[misc]
    lower = text.lower()
    written = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in lower] if len(text.split()) > 5 else []
    return max(written, key=lambda letter: lower.rfind(options[letters.index(letter)].lower()), default=None)


def opening_letter(answer: str) -> str:
    """The letter of an answer that begins "X.", else the whole answer, without case and punctuation at the ends (AI2D)."""
    opening = OPENING.match(answer)
    return (opening[1] if opening else answer).strip(" .,:;()").upper()
