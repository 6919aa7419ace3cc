"""Short answers against the accepted ones, each within 0..1."""

import ast
import re
from collections.abc import Sequence

LEAST_SIMILAR = 0.5  # ANLS: below it, an answer is another one and not a misspelling
TOLERANCE = 0.05  # ChartQA's, relative
SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+|-?\d+(?:\.\d+)?[eE][+-]?\d+|-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d|,\d)")


def gqa_equal(answer: str, truth: str) -> bool:
    """LLaVA's conversion of an answer for GQA's eval.py: final periods off, lower case; then equal."""
    return answer.rstrip(".").lower() == truth


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer (DocVQA): the best over the accepted ones, 0 below a half."""
    said = " ".join(answer.strip().lower().split())
    best = max(_similarity(said, " ".join(one.strip().lower().split())) for one in accepted)
    return best if best >= LEAST_SIMILAR else 0.0


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1.0 - _edits(one, other) / longest if longest else 1.0


def _edits(one: str, other: str) -> int:
    """Insertions, deletions and replacements from one text to the other."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        before, row[0] = row[0], place
        for index, another in enumerate(other, 1):
            before, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, before + (letter != another))
    return row[-1]


def relaxed_equal(answer: str, truth: str) -> bool:
    """ChartQA's relaxed accuracy: numbers within 5 % (a percentage is a hundredth; a truth of 0 must be met), other answers equal."""
    said, target = _number(answer), _number(truth)
    if said is not None and target:
        return abs(said - target) / abs(target) <= TOLERANCE
    return answer.strip().lower() == truth.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contained(answer: str, accepted: Sequence[str], *, exact_case: bool = False) -> bool:
    """OCRBench's rule: any accepted answer in the answer; with `exact_case` case counts and spaces do not (HME100k)."""

    def folded(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if exact_case else text.lower()

    return any(folded(one) in folded(answer) for one in accepted)


def open_equal(answer: str, truth: str) -> bool:
    """MMMU's rule for open questions (eval_utils): an accepted text in what the answer comes to, or an equal number at two decimals."""
    accepted = ast.literal_eval(truth) if truth.startswith("[") else [truth]
    wanted = {form for one in accepted for form in _forms(str(one))}
    said = {form for part in _conclusions(answer) for form in (*_forms(part), *map(_rounded, NUMBER.findall(part)))}
    texts = [form for form in said if isinstance(form, str)]
    return any(one in said if isinstance(one, float) else any(one in text for text in texts) for one in wanted)


def _conclusions(answer: str) -> list[str]:
    """Of each sentence, the shortest part after a word that announces an answer; the whole answer where none does."""
    sentences = SENTENCES.split(answer.strip().strip(".").lower())
    conclusions = []
    for place, sentence in enumerate(sentences):
        words = (*INDICATORS, "=") if place == len(sentences) - 1 else INDICATORS
        parts = [sentence.rsplit(word, 1)[1].strip() for word in words if word in sentence]
        conclusions += [part for part in [min(parts, key=len, default="")] if part.strip(":,.!?;'")]
    return conclusions or [answer.strip().strip(".").lower()]


def _forms(text: str) -> list[str | float]:
    """A number at two decimals, or the text in lower case; a single letter only between spaces, so that it is not conclusions in words."""
    text = text.strip()
    try:
        return [_rounded(text)]
    except ValueError:
        return [f" {text}".lower(), f"{text} ".lower()] if len(text) == 1 else [text.lower()]


def _rounded(text: str) -> float:
    return round(float(text.replace(",", "")), 2)
