"""Converting: exact, complete, the same bytes each time, and nothing at all when something is wrong."""

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import config_of, listing, native_copy, save_model, write_checkpoint
from support.tiny import tiny_inputs, tiny_llava
from transformers import LlavaForConditionalGeneration

from converters.checkpoint import writer
from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.permutation import Permutation
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.checkpoint.source import Source
from converters.errors import YopoError
from converters.planning.cost import cost
from converters.runtime import RUNTIME_FILES
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes, dense_plan, normalise


def random_plan(sizes: Sizes, seed: int = 0) -> Plan:
    """Heads and neurons at random, one layer frozen and read by turns, the last ones unread now and then."""
    chance = random.Random(seed)

    def some(count: int) -> tuple[int, ...]:
        return tuple(sorted(chance.sample(range(count), chance.randint(0, count))))

    heads, neurons = sizes.num_attention_heads, sizes.intermediate_size
    layers = [LayerPlan(some(heads), some(heads), some(neurons), chance.choice((None, 3)), 2) for _ in range(sizes.num_hidden_layers)]
    layers[1] = LayerPlan(tuple(range(heads)), (), (), read_stride=3)
    return Plan(sizes, tuple(layers), (Grid(4, 4),))


def provenance(folder: Path, **facts: Any) -> Provenance:
    return Provenance(Source("tiny", folder), "yopo convert tiny --budget 0.5 -o out", **facts)


def logits(model: Any, config: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**tiny_inputs(config, (3, 5), (2, 2), images=2)).logits
    return output


def load_native(folder: Path) -> Any:
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("layout", ["hub", "modules"])
def test_unpruned_is_the_native_model(layout: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "base", layout, 3)
    out = convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    assert open_checkpoint(out).tensors.keys() == model.state_dict().keys()
    assert {info.name_on_disk for info in open_checkpoint(out).tensors.values()} == model.state_dict().keys()
    assert torch.equal(logits(load_native(out), model.config), logits(model, model.config))
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config
    assert not list(out.glob("*.py"))


@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 2, "attention_bias": True, "mlp_bias": True}], ids=["plain", "grouped, biases"])
@pytest.mark.parametrize("seed", range(3))
def test_a_pruned_checkpoint_is_still_the_dense_model(sizes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    model = save_model(tmp_path / "base", "hub", 2, layers=4, **sizes)
    checkpoint = open_checkpoint(tmp_path / "base")
    out = convert(checkpoint, random_plan(checkpoint.sizes, seed), tmp_path / "out", provenance(tmp_path / "base"))
    copy = load_native(native_copy(out, tmp_path / "native"))
    moved = [name for name, tensor in copy.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])]
    assert moved
    assert all("self_attn" in name or "mlp" in name for name in moved)
    torch.testing.assert_close(logits(copy, model.config), logits(model, model.config), rtol=0, atol=1e-5)


def test_kept_neurons_and_heads_come_first(tmp_path: Path) -> None:
    model = save_model(tmp_path / "base")
    plan = Plan(open_checkpoint(tmp_path / "base").sizes, (LayerPlan((1, 2), (2,), (5, 40)), LayerPlan((3,), (), ())), (Grid(4, 4),))
    out = convert(open_checkpoint(tmp_path / "base"), plan, tmp_path / "out", provenance(tmp_path / "base"))
    tensors = open_converted(out).open_tensors()
    before, layer = model.state_dict(), "model.language_model.layers.0."
    assert torch.equal(tensors.read(layer + "mlp.up_proj.weight")[:3], before[layer + "mlp.up_proj.weight"][[5, 40, 0]])
    assert torch.equal(tensors.read(layer + "mlp.down_proj.weight")[:, :3], before[layer + "mlp.down_proj.weight"][:, [5, 40, 0]])
    # Head 2 is computed and read, head 1 is read only, 0 and 3 are text's alone; a head is eight rows.
    rows = [8 * head + row for head in (2, 1, 0, 3) for row in range(8)]
    assert torch.equal(tensors.read(layer + "self_attn.k_proj.weight"), before[layer + "self_attn.k_proj.weight"][rows])
    assert torch.equal(tensors.read(layer + "self_attn.o_proj.weight"), before[layer + "self_attn.o_proj.weight"][:, rows])


def test_permutations_by_hand() -> None:
    tensor = torch.arange(8.0).view(2, 4)
    assert Permutation(1, (1, 0), 2).apply(tensor).tolist() == [[2, 3, 0, 1], [6, 7, 4, 5]]
    assert Permutation(1, (3, 0, 1, 2)).apply(tensor).tolist() == [[3, 0, 1, 2], [7, 4, 5, 6]]
    assert Permutation(0, (1, 0)).apply(tensor).tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert Permutation(0, (1, 0)).apply(torch.tensor([5.0, 6.0])).tolist() == [6, 5]
    assert Permutation(0, (0, 1)).apply(tensor) is tensor
    with pytest.raises(ValueError, match="2 blocks of 1 do not make 4"):
        Permutation(1, (0, 1)).apply(tensor)


def test_everything_is_there(tmp_path: Path) -> None:
    save_model(tmp_path / "base", shards=2)
    checkpoint = open_checkpoint(tmp_path / "base")
    plan = random_plan(checkpoint.sizes, 1)
    calibration = {"samples": 100, "from": "questions.jsonl", "seed": 0, "data": "abc"}
    facts = provenance(tmp_path / "base", budget=0.5, recipe="interlaced", calibration=calibration)
    progress: list[tuple[int, int]] = []
    out = convert(checkpoint, plan, tmp_path / "out", facts, progress=lambda *step: progress.append(step), max_shard_bytes=40_000)
    converted = open_converted(out)
    names = {file.name for file in out.iterdir()}
    shards = {name for name in names if name.endswith(".safetensors")}
    assert len(shards) > 1
    copied = {"generation_config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt"}
    written = {"config.json", "README.md", "SHA256SUMS", "model.safetensors.index.json"}
    assert names == shards | copied | written | set(RUNTIME_FILES) | {"modeling_yopo_llava.py"}
    assert converted.files.keys() == names - {"SHA256SUMS"}
    assert converted.changed_files() == ()
    assert converted.plan == normalise(plan)
    assert progress[-1] == (checkpoint.bytes, checkpoint.bytes)
    base = json.loads((tmp_path / "base" / "config.json").read_text())
    assert {key: converted.config[key] for key in base.keys() - {"model_type", "architectures", "torch_dtype"}}.items() <= base.items()
    assert converted.config["model_type"] == "yopo_llava"
    assert converted.config["architectures"] == ["YopoLlavaForConditionalGeneration"]
    assert converted.config["auto_map"]["AutoConfig"] == "modeling_yopo_llava.YopoLlavaConfig"
    section = converted.section
    assert section["budget"] == {"asked": 0.5, "reached": cost(plan).share}
    assert section["base"] == {"name": "tiny", "repository": None, "revision": None, "fingerprint": checkpoint.fingerprint()}
    assert (section["recipe"], section["calibration"]) == ("interlaced", calibration)
    assert section["attention"]["visual_depth"] == plan.visual_depth
    assert section["attention"]["grid"]["skew"] == ({"3": 1} if plan.visual_depth > 1 else {})
    assert [layer["neurons"] for layer in section["attention"]["layers"]] == [len(layer.neurons) for layer in normalise(plan).layers]
    for name in (*RUNTIME_FILES, "modeling_yopo_llava.py"):
        assert (out / name).read_bytes() == (Path("converters/runtime") / name).read_bytes()


def test_the_card(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    plan = random_plan(checkpoint.sizes)
    source = Source("tiny", tmp_path / "base", "someone/tiny-hf", "0" * 40)
    out = convert(checkpoint, plan, tmp_path / "out", Provenance(source, "yopo convert tiny --plan p.json", budget=0.5))
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ")
    assert 'base_model: "someone/tiny-hf"\nlicense: "llama2"\n---\n' in card
    assert "    yopo convert tiny --plan p.json\n" in card
    assert f"{cost(plan).share:.2%}" in card
    assert "Budget asked: 50.0000%" in card
    assert "That of the base model: llama2. Copied from it: LICENSE.txt." in card


@pytest.mark.parametrize(
    ("readme", "licence_file", "expected"),
    [
        (
            "---\nlicense: other\nlicense_name: 'qwen'\nlicense_link: LICENSE\n---\n",
            True,
            'license: "other"\nlicense_name: "qwen"\nlicense_link: "LICENSE"',
        ),
        ("# no front matter\nlicense: mit\n", True, 'license: "other"\nlicense_link: "LICENSE.txt"'),
        (None, False, "comes without a stated licence"),
    ],
)
def test_licences(readme: str | None, licence_file: bool, expected: str, tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    (tmp_path / "base" / "README.md").unlink()
    if readme:
        (tmp_path / "base" / "README.md").write_text(readme)
    if not licence_file:
        (tmp_path / "base" / "LICENSE.txt").unlink()
    out = convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    assert expected in (out / "README.md").read_text()


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    save_model(tmp_path / "base", shards=3)
    outputs = []
    for name in ("a", "b"):
        checkpoint = open_checkpoint(tmp_path / "base")
        out = convert(
            checkpoint, random_plan(checkpoint.sizes), tmp_path / name, provenance(tmp_path / "base", budget=0.5), max_shard_bytes=50_000
        )
        outputs.append(listing(out))
    assert outputs[0] == outputs[1]


def test_dtypes_stay_what_they_are(tmp_path: Path) -> None:
    model, config = tiny_llava()
    half = {name: tensor.to(torch.bfloat16 if "norm" in name else torch.float16) for name, tensor in model.state_dict().items()}
    write_checkpoint(tmp_path / "base", config_of(config) | {"torch_dtype": "float16"}, half)
    checkpoint = open_checkpoint(tmp_path / "base")
    out = convert(checkpoint, random_plan(checkpoint.sizes), tmp_path / "out", provenance(tmp_path / "base"))
    converted = open_converted(out)
    assert {name: info.dtype for name, info in converted.open_tensors().tensors.items()} == {
        name: "BF16" if "norm" in name else "F16" for name in half
    }
    assert converted.config["dtype"] == "float16"
    assert "torch_dtype" not in converted.config


@pytest.mark.parametrize("name", ["model.language_model.layers.1.mlp.down_proj.weight", "model.vision_tower.pre_layrnorm.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(name: str, value: float, tmp_path: Path) -> None:
    model, config = tiny_llava()
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tensors[name].view(-1)[7] = value
    write_checkpoint(tmp_path / "base", config_of(config), tensors)
    checkpoint = open_checkpoint(tmp_path / "base")
    with pytest.raises(YopoError, match=f"'{name}' holds 1 values that are NaN or infinite"):
        convert(checkpoint, dense_plan(checkpoint.sizes, checkpoint.grids), tmp_path / "out", provenance(tmp_path / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_bad_plans(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    other = dense_plan(Sizes(32, 64, 3, 4, 4, 8), (Grid(4, 4),))
    with pytest.raises(YopoError, match=r"for another model: intermediate_size 64 instead of 48, num_hidden_layers 3 instead of 2\."):
        convert(checkpoint, other, tmp_path / "out", provenance(tmp_path / "base"))
    wrong = Plan(checkpoint.sizes, (LayerPlan((9,), (), ()),) * 2, (Grid(4, 4),))
    with pytest.raises(YopoError, match=r"cannot be obeyed: layer 0: read_heads must be .* 0\.\.3"):
        convert(checkpoint, wrong, tmp_path / "out", provenance(tmp_path / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_existing_output_stays_unless_forced(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    checkpoint, facts = open_checkpoint(tmp_path / "base"), provenance(tmp_path / "base")
    out = convert(checkpoint, random_plan(checkpoint.sizes), tmp_path / "out", facts)
    before = listing(tmp_path)
    with pytest.raises(YopoError, match="exists already"):
        convert(checkpoint, None, out, facts)
    with pytest.raises(YopoError, match="is the model that is read"):
        convert(checkpoint, None, tmp_path / "base", facts, force=True)
    assert listing(tmp_path) == before
    convert(checkpoint, None, out, facts, force=True)
    assert not list(out.glob("*.py"))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


def test_a_converted_model_is_not_converted_again(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    out = convert(checkpoint, random_plan(checkpoint.sizes), tmp_path / "out", provenance(tmp_path / "base"))
    with pytest.raises(YopoError, match="is pruned already") as raised:
        open_checkpoint(out)
    assert "tiny" in raised.value.hint


def test_what_a_converted_folder_can_be_asked(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    out = convert(checkpoint, random_plan(checkpoint.sizes), tmp_path / "out", provenance(tmp_path / "base"))
    (out / "cache.py").write_text("# changed")
    (out / "model.safetensors").unlink()
    converted = open_converted(out)
    assert converted.changed_files() == ("cache.py", "model.safetensors")
    with pytest.raises(YopoError, match="has no weights"):
        converted.open_tensors()
    (out / "SHA256SUMS").unlink()
    assert open_converted(out).files == {}
    config = json.loads((out / "config.json").read_text())
    config["yopo"]["plan"]["schema"] = 99
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(YopoError, match="the plan's schema is 99"):
        open_converted(out)


def test_a_full_disk_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "base")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1000))
    with pytest.raises(YopoError, match=r"has 0\.00 GB free"):
        convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupted"])
def test_a_run_that_breaks_off(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "base")
    pieces: list[int] = []
    write = writer._write

    def fail_late(stream: Any, data: memoryview, *others: Any) -> None:
        pieces.append(len(data))
        if len(pieces) == 5:
            raise error
        write(stream, data, *others)

    monkeypatch.setattr(writer, "_write", fail_late)
    expected, sentence = (YopoError, "The disk is full") if isinstance(error, OSError) else (KeyboardInterrupt, None)
    with pytest.raises(expected, match=sentence):
        convert(open_checkpoint(tmp_path / "base"), None, tmp_path / "out", provenance(tmp_path / "base"))
    assert len(pieces) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_run_that_is_terminated(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    script = (
        "import sys, time; from pathlib import Path; from converters.checkpoint.reader import open_checkpoint\n"
        "from converters.checkpoint.source import Source; from converters.checkpoint.convert import Provenance, convert\n"
        "base = Path(sys.argv[1])\n"
        "def progress(done, total):\n"
        "    print(done, flush=True); time.sleep(60)\n"
        "convert(open_checkpoint(base), None, base.parent / 'out', Provenance(Source('t', base), 'x'), progress=progress)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "base")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGTERM)
        assert b"KeyboardInterrupt" in process.stderr.read()
    assert process.returncode
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
