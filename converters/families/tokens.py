"""Tokenizers of published folders in transformers' own form, made from their files without running code that came with them."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import YopoError
from ..json_files import read_bytes, read_object

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
MAX_TOKENIZER_BYTES, MAX_PIECE_CHARACTERS, MAX_VARINT_BITS = 1 << 28, 1000, 64
COMPLETE = "Is the folder complete? Fetch the model again."


@dataclass(frozen=True)
class SentencePiece:
    """An entry of a sentencepiece vocabulary; `kind` is sentencepiece's type."""

    text: str
    kind: int


def write_processor(folder: Path, tokenizer: Any, processor: dict[str, Any], template: str, generation: dict[str, Any]) -> None:
    """A processor's files: tokenizer, image processing, chat template (Jinja) and generation defaults."""
    tokenizer.save_pretrained(folder)
    for name, data in (("processor_config.json", processor), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def added_tokens(folder: Path) -> dict[int, dict[str, Any]]:
    """Tokens that were added to a tokenizer, by id, with their flags where they are told, from whichever file lists them."""
    listed = {token: {"content": text} for text, token in _json(folder / "added_tokens.json").items()}
    entries = {entry["id"]: entry for entry in _json(folder / "tokenizer.json").get("added_tokens", [])}
    decoder = {int(token): entry for token, entry in _json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items()}
    return listed | entries | decoder


def token_id(folder: Path, token: str) -> int:
    """The id of a token that was added to the tokenizer. Raises YopoError if there is none."""
    for number, entry in added_tokens(folder).items():
        if entry["content"] == token:
            return number
    raise YopoError(f"The tokenizer in {folder} has no token {token}.", COMPLETE)


def fast_tokenizer(folder: Path) -> Any:
    """The tokenizer in `tokenizer.json`."""
    from transformers import PreTrainedTokenizerFast

    config = _json(folder / "tokenizer_config.json")
    named = {name: _text(config[name]) for name in NAMED if config.get(name)}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **named)


def llama_tokenizer(folder: Path, prefix_space: bool) -> Any:
    """A Llama tokenizer from `tokenizer.model`, with the added tokens at their ids.

    Raises YopoError if there is no such file or a token cannot have its id.
    """
    from transformers import LlamaTokenizer

    config, added = _json(folder / "tokenizer_config.json"), added_tokens(folder)
    pieces = dict(enumerate(read_pieces(folder / "tokenizer.model")))
    # Places that were kept free in the vocabulary may be taken by added tokens.
    pieces |= {token: SentencePiece(entry["content"], USER_DEFINED) for token, entry in added.items() if token in pieces}
    named = {name: _text(config[name]) for name in NAMED if config.get(name)}
    tokenizer: Any = LlamaTokenizer(
        vocab={piece.text: token for token, piece in pieces.items()},
        merges=merges({token: piece.text for token, piece in pieces.items() if piece.kind == NORMAL}),
        add_prefix_space=prefix_space,
        legacy=config.get("legacy", False),
        add_bos_token=config.get("add_bos_token", True),
        add_eos_token=config.get("add_eos_token", False),
        padding_side="left",
        **named,
    )
    special = {token: {"content": piece.text} for token, piece in pieces.items() if piece.kind in (CONTROL, USER_DEFINED)}
    add(tokenizer, special | added)
    return tokenizer


def qwen_tokenizer(folder: Path) -> Any:
    """A Qwen tokenizer from `vocab.json` and `merges.txt`, with the added tokens at their ids.

    Raises YopoError if a file is missing or a token has another id.
    """
    from transformers import Qwen2Tokenizer

    if missing := [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]:
        raise YopoError(f"The tokenizer in {folder} has no {missing[0]}.", COMPLETE)
    tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder)
    for token, entry in added_tokens(folder).items():
        _check_id(tokenizer, entry["content"], token)
    return tokenizer


def add(tokenizer: Any, tokens: dict[int, dict[str, Any]]) -> None:
    """Add tokens in the order of their ids. Raises YopoError if one gets another id."""
    from transformers import AddedToken

    for token, entry in sorted(tokens.items()):
        flags = {name: entry[name] for name in ("lstrip", "rstrip", "normalized", "single_word") if name in entry}
        special = entry.get("special", True)
        tokenizer.add_tokens(AddedToken(entry["content"], special=special, **({"normalized": False} | flags)), special_tokens=special)
        _check_id(tokenizer, entry["content"], token)


def _check_id(tokenizer: Any, text: str, token: int) -> None:
    if (found := tokenizer.convert_tokens_to_ids(text)) != token:
        raise YopoError(f"The token {text} has the id {token}, but would get {found}.", COMPLETE)


def naming(tokenizer: Any, tokens: dict[str, str]) -> Any:
    """The same tokenizer, with more names for some of its tokens, as processors look for them; those that it lacks come last."""
    from transformers import PreTrainedTokenizerFast

    named = {name: getattr(tokenizer, name) for name in NAMED if getattr(tokenizer, name)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=tokens, padding_side="left", **named)


def merges(vocabulary: dict[int, str]) -> list[tuple[str, str]]:
    """Merges of a BPE vocabulary, which sentencepiece does not list: pieces were made in the order of their ids."""
    ids = {text: token for token, text in vocabulary.items()}
    found = []
    for token, text in vocabulary.items():
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids]
        found += [(token, len(left), left, right) for left, right in sorted(halves, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return [(left, right) for _, _, left, right in sorted(found, key=lambda merge: merge[:2])]


def read_pieces(file: Path) -> list[SentencePiece]:
    """The vocabulary of a sentencepiece file, by id. Format: sentencepiece_model.proto, `repeated SentencePiece pieces = 1`.

    Raises YopoError if the file is none.
    """
    data = read_bytes(file, COMPLETE, MAX_TOKENIZER_BYTES)
    try:
        return [_piece(entry) for field, entry in _fields(data) if field == 1]
    except (ValueError, IndexError, KeyError, struct.error, AttributeError):
        raise YopoError(f"{file} is not a sentencepiece vocabulary.", "Fetch it again.") from None


def _piece(data: Any) -> SentencePiece:
    """`string piece = 1; float score = 2; Type type = 3 [default = NORMAL]`"""
    entry = dict(_fields(data))
    if len(text := entry[1].decode()) > MAX_PIECE_CHARACTERS:
        raise ValueError("a piece is too long")
    return SentencePiece(text, entry.get(3, NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message: integers, and bytes for everything else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        else:
            size = {1: 8, 5: 4}[wire]
        if place + size > len(data):
            raise ValueError("the message ends early")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        if byte < 0x80:
            return value, place
        if shift > MAX_VARINT_BITS:
            raise ValueError("a number is too long")


def _text(token: Any) -> str:
    """A token as tokenizer_config.json has it: its text, or an object with its flags."""
    return str(token["content"] if isinstance(token, dict) else token)


def _json(file: Path) -> dict[str, Any]:
    return read_object(file, COMPLETE, MAX_TOKENIZER_BYTES) if file.exists() else {}
