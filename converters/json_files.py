"""Every JSON file that is read: a regular file of bounded size, in UTF-8, of bounded depth, no key twice, every number finite."""

import json
import math
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import YopoError

if TYPE_CHECKING:  # takes a while to import, and some files need no schema
    from pydantic import BaseModel

MAX_BYTES = 10_000_000
MAX_DEPTH = 64
MAX_DIGITS = 40  # tokenizers have 10^30 for "no limit"

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Schema = TypeVar("Schema", bound="BaseModel")


def read_json(file: Path, hint: str, limit: int = MAX_BYTES) -> Any:
    """What a JSON file holds. Raises YopoError, with this hint, where it cannot be read or is no such file."""
    return parse_json(read_bytes(file, hint, limit), str(file), hint)


def read_object(file: Path, hint: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The same, of a file that holds an object."""
    return object_of(read_bytes(file, hint, limit), str(file), hint)


def object_of(text: bytes, place: str, hint: str) -> dict[str, Any]:
    """The object of a JSON text. Raises YopoError that begins with `place`."""
    data = parse_json(text, place, hint)
    if not isinstance(data, dict):
        raise YopoError(f"{place} is not a JSON object.", hint)
    return data


def read_bytes(file: Path, hint: str, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises YopoError."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise YopoError(f"{file} is not a regular file.", hint)
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise YopoError(f"{file} does not exist.", hint) from None
    except NotADirectoryError:
        raise YopoError(f"{file.parent} is not a folder.", hint) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise YopoError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.", hint) from None
    if len(data) > limit:
        raise YopoError(f"{file} is larger than {limit:,} bytes.", hint)
    return data


def parse_json(text: bytes, place: str, hint: str) -> Any:
    """The data of a JSON text. Raises YopoError that begins with `place`."""
    try:
        data = json.loads(text.decode("utf-8"), parse_int=_integer, parse_float=_number, parse_constant=_number, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise YopoError(f"{place} is not UTF-8 (byte {error.start}).", hint) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if b"\n" in text.rstrip() else f"column {error.colno}"
        raise YopoError(f"{place} is not JSON: {error.msg} at {where}.", hint) from None
    except RecursionError:
        raise YopoError(f"{place} is nested deeper than {MAX_DEPTH} levels.", hint) from None
    except _RefusedError as error:
        raise YopoError(f"{place} is not used: {error}.", hint) from None
    if SURROGATE.search(text) and not _encodable(data):
        raise YopoError(f"{place} is not used: it holds half of a character.", hint)
    if _deeper(data, MAX_DEPTH):
        raise YopoError(f"{place} is nested deeper than {MAX_DEPTH} levels.", hint)
    return data


def conforming(schema: type[Schema], data: Any, place: str, hint: str) -> Schema:
    """The data as the schema's object. Raises YopoError that names the first value that does not conform, and where it is."""
    from pydantic import ValidationError

    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise YopoError(f"{place}{_sentence(error.errors(include_url=False, include_context=False)[0])}.", hint) from None


class _RefusedError(ValueError):
    """JSON as Python reads it, but not as it is meant."""


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"a number has {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    if len(text) > 10 * MAX_DIGITS or not math.isfinite(number := float(text)):
        raise _RefusedError(f"{text[:MAX_DIGITS]} is not a finite number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RefusedError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return data


def _encodable(data: Any) -> bool:
    """Whether its texts are Unicode: JSON can write half of a pair of surrogates, which nothing can print or read again."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _deeper(data: Any, depth: int) -> bool:
    """Whether objects and lists are nested deeper than that."""
    level = [data]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _sentence(error: Any) -> str:
    """The end of the sentence for an error of pydantic."""
    where = ".".join(map(str, error["loc"])) or "it"
    if error["type"] == "missing":
        return f" lacks {where}"
    if error["type"] == "extra_forbidden":
        return f" has an unknown key: {where}"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f": {where} is {error['input']!r:.60}, but {message}"
