"""A line of a JSONL file with questions about pictures."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Line(BaseModel):
    """Text, and no other key; an empty answer is none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    image: Annotated[str, Field(min_length=1)]
    question: str
    answer: str = ""
    kind: str = ""
    id: Any = None
