"""A question as a line of a file has it, its pictures aside."""

from collections import Counter
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _text(value: Any) -> Any:
    """A number as it is written; anything else as it is."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _said(value: Any) -> Any:
    """VQAv2 has people's answers as objects."""
    return _text(value["answer"] if isinstance(value, dict) and "answer" in value else value)


Text = Annotated[str, BeforeValidator(_text)]


class Line(BaseModel):
    """Text, numbers as text, and no other key; an empty answer is none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: str
    answer: Text = ""
    answers: list[Annotated[str, BeforeValidator(_said)]] = []
    kind: str = ""
    id: Any = None

    @property
    def expected(self) -> str | None:
        """The answer; of several people's, the one that most of them gave, the first of these."""
        counted = Counter(self.answers).most_common(1)
        return counted[0][0] if counted else self.answer or None


class MessagePart(BaseModel):
    """A part of what is said: text, or a place for a picture."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str | None = None


class MessageTurn(BaseModel):
    """One turn of a LLaVA conversation (`from`, `value`) or of a chat (`role`, `content`)."""

    model_config = ConfigDict(strict=True)

    speaker: str | None = Field(None, alias="from")
    role: str | None = None
    value: str | list[MessagePart] | None = None
    content: str | list[MessagePart] = ""

    @property
    def words(self) -> str:
        """What is said: text, or the texts among its parts."""
        said = self.content if self.value is None else self.value
        return said if isinstance(said, str) else "".join(part.text or "" for part in said if part.type == "text")


class Talk(BaseModel):
    """A conversation about pictures."""

    model_config = ConfigDict(strict=True)

    turns: list[MessageTurn]
    kind: str | None = None
