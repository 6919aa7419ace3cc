"""Tiny tokenizers in the form in which old checkpoints have them: a sentencepiece file and a list of added tokens."""

import json
import struct
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes, shorter than 128."""
    return bytes([number << 3 | 2, len(data)]) + data


def save_sentencepiece(file: Path, words: list[str], size: int, byte_pieces: bool = False) -> None:
    """A vocabulary of `size`: <unk>, <s>, </s>, all bytes if asked, `words`, in which halves precede the whole, and unused places."""
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3} | (dict.fromkeys(BYTES, 6) if byte_pieces else {})
    pieces = [*kinds, *words]
    pieces += [f"[UNUSED_TOKEN_{place}]" for place in range(size - len(pieces))]
    file.write_bytes(
        b"".join(
            field(1, field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", -place) + bytes([3 << 3, kinds.get(text, 1)]))
            for place, text in enumerate(pieces)
        )
    )


def save_tokenizer(folder: Path, words: list[str], size: int, added: dict[int, str], byte_pieces: bool = False) -> None:
    """tokenizer.model and tokenizer_config.json."""
    decoder = {str(number): {"content": text, "special": True, "normalized": False} for number, text in added.items()}
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    save_sentencepiece(folder / "tokenizer.model", words, size, byte_pieces)


def save_words(folder: Path, special: dict[int, str], named: dict[str, str], size: int = 64) -> None:
    """tokenizer.json of single words, w0 to w63, but for the special ones at their ids; `named` are a processor's names for some."""
    words = {special.get(index, f"w{index}"): index for index in range(size)}
    built = Tokenizer(WordLevel(words, unk_token="w3"))
    built.pre_tokenizer = Whitespace()
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    ends = {"bos_token": special[1], "eos_token": special[2], "pad_token": special[0]}
    PreTrainedTokenizerFast(tokenizer_object=built, extra_special_tokens=named, padding_side="left", **ends).save_pretrained(folder)
