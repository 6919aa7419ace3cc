"""Outputs and arguments whose names differ between releases of transformers: the installed one decides."""

from dataclasses import fields
from typing import Any, TypeVar

from transformers.modeling_outputs import BaseModelOutputWithPast

Output = TypeVar("Output")

CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
"""What the KV cache is called in arguments and outputs: `cache` from 5.24 on."""


def output_of(kind: type[Output], cache: Any, **values: Any) -> Output:
    """An output of this class, with those of the values that the class has a field for."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in {CACHE: cache, **values}.items() if name in names})
