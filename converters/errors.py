"""The one exception that users meet: a sentence with the values, then a hint with the way out."""


class YopoError(Exception):
    """What went wrong in one sentence, and in `hint` what to do about it. Commands print both and exit with 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
