"""Whether an answer says yes or no."""


def pope_yes(answer: str) -> bool:
    """POPE's rule (evaluate.py): no where "No", "no" or "not" is a word of the first sentence; anything else is yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def mme_word(answer: str) -> str | None:
    """MME's rule (calculation.py): yes or no alone, else "yes", then "no", within the first four characters; else neither."""
    answer = answer.strip().lower()
    if answer in ("yes", "no"):
        return answer
    start = answer[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None
