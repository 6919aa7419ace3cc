"""The one reader of JSON: what it takes is what was meant, and what it refuses it refuses at once."""

import os
from pathlib import Path

import pytest
from support.checkpoints import save_model

from converters.checkpoint.card import licence
from converters.checkpoint.config import check_config, read_config
from converters.checkpoint.reader import open_checkpoint
from converters.errors import YopoError
from converters.json_files import MAX_DEPTH, parse_json, read_bytes, read_json, read_object

REFUSED = {
    "not JSON": (b"{", "is not JSON: Expecting property name"),
    "nothing": (b"", "is not JSON"),
    "two values": (b"{} {}", "is not JSON: Extra data at column 4"),
    "another encoding": ("ä".encode("latin-1"), "is not UTF-8 \\(byte 0\\)"),
    "UTF-16": ("{}".encode("utf-16"), "is not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "is not JSON"),
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
    "a key twice inside": (b'[{"b": {"a": 1, "a": 1}}]', "the key 'a' is there twice"),
    "NaN": (b"[NaN]", "NaN is not a finite number"),
    "infinity": (b"-Infinity", "-Infinity is not a finite number"),
    "overflow": (b"1e999", "1e999 is not a finite number"),
    "digits": (b"1" * 41, "a number has 41 digits"),
    "many digits": (b"1" * 100_000, "a number has 100000 digits"),
    "depth": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested deeper than 64 levels"),
    "great depth": (b"[" * 100_000, "nested deeper than 64 levels|is not JSON"),
    "half a character": (b'"\\ud83d"', "half of a character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(YopoError, match=f"(?s)^The text .*({sentence})") as raised:
        parse_json(text, "The text", "Write it anew.")
    assert raised.value.hint == "Write it anew."


def test_what_is_taken() -> None:
    assert parse_json(b' {"a": [1, -2.5, true, null, "\xc3\xa4\\ud83d\\ude00"]}\n', "", "") == {"a": [1, -2.5, True, None, "ä😀"]}
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "", "")
    assert parse_json(b"1" + b"0" * 30, "", "") == 10**30


def test_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert read_json(tmp_path / "list", "") == [1]
    for name, sentence in {
        "pipe": "is not a regular file", ".": "is not a regular file", "none": "does not exist", "list/a": "list is not a folder",
        "loop": "cannot be read", "a" * 300: "File name too long",
    }.items():  # fmt: skip
        with pytest.raises(YopoError, match=sentence):
            read_json(tmp_path / name, "")
    with pytest.raises(YopoError, match="list is not a JSON object"):
        read_object(tmp_path / "list", "")
    with pytest.raises(YopoError, match="list is larger than 2 bytes"):
        read_bytes(tmp_path / "list", "", 2)
    with pytest.raises(YopoError, match="is not a regular file"):
        read_json(Path("/dev/zero"), "")


def test_a_folder_of_pipes(tmp_path: Path) -> None:
    """Nothing waits for what nobody writes, and nothing reads what never ends."""
    save_model(tmp_path / "model")
    for name in ("README.md", "config.json"):
        (tmp_path / "model" / name).unlink()
    (tmp_path / "model" / "README.md").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "model" / "config.json")
    assert licence(tmp_path / "model") == {"license": "other", "license_link": "LICENSE.txt"}
    with pytest.raises(YopoError, match=r"config\.json is not a regular file"):
        read_config(tmp_path / "model")


@pytest.mark.parametrize("binary", [False, True])
def test_weights_from_a_pipe(tmp_path: Path, binary: bool) -> None:
    save_model(tmp_path / "model", binary=binary)
    (weights,) = (file for file in (tmp_path / "model").iterdir() if file.suffix in (".bin", ".safetensors"))
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(YopoError, match="is not a regular file"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"text_config": {"hidden_size": 0}}', "text_config.hidden_size is 0, but"),
        ('{"text_config": {"num_hidden_layers": 1000000000}}', "text_config.num_hidden_layers is 1000000000, but"),
        ('{"vision_config": {"image_size": [336]}}', "vision_config.image_size"),
        ('{"vision_config": {"hidden_size": true}}', "vision_config.hidden_size is True, but"),
        ('{"text_config": []}', "text_config is .., but"),
        ('{"architectures": "Llava"}', "architectures is 'Llava', but"),
        ('{"model_type": 3}', "model_type is 3, but"),
        ('{"quantization_config": "gptq"}', "quantization_config is 'gptq', but"),
        ('{"yopo": 1}', "yopo is 1, but"),
    ],
)
def test_values_of_config_json(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(YopoError, match=f"config.json: {sentence}"):
        read_config(tmp_path)


def test_an_adapter_beside_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(YopoError, match="is an adapter, or holds one"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "converters" / "bench" / "configs").glob("*.json")), ids=lambda file: file.stem
)
def test_published_configs_are_taken(file: Path) -> None:
    check_config(read_object(file, ""), "config.json")
