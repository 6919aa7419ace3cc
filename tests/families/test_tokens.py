"""Sentencepiece vocabularies without sentencepiece: the same pieces, and the same tokens of any text."""

import json
import random
from pathlib import Path

import pytest

from converters.errors import YopoError
from converters.families.tokens import llama_tokenizer, merges, read_pieces, token_id


def test_merges_by_hand() -> None:
    assert merges({0: "a", 1: "b", 2: "ab", 3: "aba"}) == [("a", "b"), ("ab", "a")]


def test_what_is_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="does not exist"):
        read_pieces(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x7fabc")
    with pytest.raises(YopoError, match="is not a sentencepiece vocabulary"):
        read_pieces(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("prefix_space", [False, True], ids=["InternLM2", "Llama"])
def test_the_tokens_are_sentencepieces(prefix_space: bool, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    choose = random.Random(0)
    words = ["hello", "world", "picture", "question", "the", "a", "of", "图像", "模型", "red", "blue", "circle"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(choose.choices(words, k=8)) for _ in range(300)),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        user_defined_symbols=["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"],
        hard_vocab_limit=False,
        add_dummy_prefix=prefix_space,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    size = processor.get_piece_size()
    assert [piece.text for piece in read_pieces(tmp_path / "tokenizer.model")] == [processor.id_to_piece(token) for token in range(size)]
    added = {"3": {"content": "<|im_end|>"}, str(size): {"content": "<img>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = llama_tokenizer(tmp_path, prefix_space)
    characters = "".join(words) + "  \n\té z"
    for _ in range(300):
        text = "".join(choose.choices(characters, k=choose.randint(1, 30)))
        # Of a text that begins with a space, transformers' Llama tokenizer takes that one for the space put before it.
        text = text.lstrip(" ") if prefix_space else text
        assert tokenizer.encode(text) == [1, *processor.encode(text)], repr(text)
    assert tokenizer.encode("hello<|im_end|><img>") == [1, *processor.encode("hello"), 3, size]
    assert token_id(tmp_path, "<img>") == size
