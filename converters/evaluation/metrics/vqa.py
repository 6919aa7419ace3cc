"""The VQA score: an answer against those of ten people.

The rules are those of the VQA evaluation server (GT-Vision-Lab/VQA, vqaEval.py) and of M4C's answer processor (facebookresearch/mmf,
EvalAIAnswerProcessor), which LLaVA applies to what it submits and to TextVQA on both sides.
"""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # both codes pass re.UNICODE, which is 32, as the number of replacements
GROUPED_DIGITS = re.compile(r"\d,+\d")
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
    how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
SPELLINGS = {
    word[:place] + word[place + 1 :]: word for word in CONTRACTIONS.split() for place, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}
"""Contractions with one apostrophe forgotten; the last is the server's own."""


def server_form(answer: str) -> str:
    """The answer as the VQA server compares it: punctuation, lower case, number words, articles, contractions."""
    return _words(_without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))


def short_form(answer: str) -> str:
    """The same; an answer that consists of an article alone (a letter of a multiple choice) stays."""
    return server_form(answer) or " ".join(_without_punctuation(answer).lower().split())


def m4c_form(answer: str) -> str:
    """The same after M4C's first step, which takes commas and question marks out and parts a possessive `'s`."""
    return server_form(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def vqa_score(answer: str, people: Sequence[str]) -> float:
    """VQAv2's score, within 0..1, of an answer that is put into M4C's form first, as LLaVA does before it submits.

    For each person left out, a third for every match among the others, at most 1; the mean of these. People's answers are compared
    as they were written where all are the same.
    """
    answer = m4c_form(answer)
    if len(set(people)) > 1:
        return _consensus(server_form(answer), [server_form(one) for one in people])
    return _consensus(answer, people)


def textvqa_score(answer: str, people: Sequence[str]) -> float:
    """TextVQA's score, within 0..1: the same consensus, with both sides in M4C's form."""
    return _consensus(m4c_form(answer), [m4c_form(one) for one in people])


def _consensus(answer: str, people: Sequence[str]) -> float:
    matches = [one == answer for one in people]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def _without_punctuation(text: str) -> str:
    """A mark next to a space goes, one inside a word becomes a space; all go where a comma groups digits; so do final periods."""
    grouped = GROUPED_DIGITS.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if alone or grouped else " ")
    return PERIOD.sub("", result, count=MOST_PERIODS)


def _words(text: str) -> str:
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(SPELLINGS.get(word, word) for word in words if word not in ARTICLES)
