"""The metadata of a statistics file: types and ranges."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
GridFile = Annotated[list[Count], Field(min_length=3, max_length=3)]
LayoutFile = Annotated[list[GridFile], Field(min_length=1)]


class Facts(BaseModel):
    """No other key, no other type."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1] = Field(alias="schema")
    read_rows: Count
    visual_rows: Count
    samples: Count
    layouts: Annotated[list[Annotated[tuple[LayoutFile, Count], Field(strict=False)]], Field(min_length=1)]
    model: str
    data: str
    questions_from: str
    seed: int | None
