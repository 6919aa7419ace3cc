"""Calibration: the streamed statistics equal a slow twin that looks at whole attention maps, whatever the batches."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tiny import IMAGE_TOKEN, tiny_inputs, tiny_llava
from support.tiny_families import qwen_inputs, tiny_qwen
from torch import Tensor
from transformers import AutoProcessor, BatchFeature

from converters.calibration import recorder
from converters.calibration.batch import hash_of
from converters.calibration.histogram import BINS, bins_of, value_exceeded_by
from converters.calibration.statistics import METADATA_KEY, Statistics, calibrate, merge
from converters.data.formats import read_samples
from converters.data.prompts import encode, prompt
from converters.data.sample import Sample
from converters.errors import YopoError
from converters.families import family_of
from converters.runtime.plan import Grid

PROMPTS = ((3, 4), (1, 7), (6, 2), (2, 1), (4, 5))
MODELS = {
    "all heads alike": {},
    "grouped KV heads with biases": {"heads": 4, "kv_heads": 2, "attention_bias": True},
    "wide heads": {"heads": 4, "kv_heads": 1, "head_dim": 16, "seed": 1},
}
DEMO = Path(__file__).parent.parent.parent / "converters" / "data" / "demo" / "model"


def single(config: Any, index: int, images: int = 1) -> BatchFeature:
    return tiny_inputs(config, PROMPTS[index], images=images, seed=index)


def padded(batches: list[BatchFeature]) -> BatchFeature:
    """One left-padded batch of several samples."""
    width = max(batch["input_ids"].shape[1] for batch in batches)

    def pad(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (width - tensor.shape[1], 0))

    joined = {name: torch.cat([pad(batch[name]) for batch in batches]) for name in ("input_ids", "attention_mask")}
    return BatchFeature({**joined, "pixel_values": torch.cat([batch["pixel_values"] for batch in batches])})


def keep(found: dict[int, Tensor], at: int, output: bool) -> Any:
    """A hook that keeps a module's output or its input, [tokens, width]."""

    def hook(_: Any, inputs: tuple[Tensor], result: Tensor) -> None:
        found[at] = result[0] if output else inputs[0][0]

    return hook


def twin(model: Any, batch: BatchFeature) -> dict[str, Tensor]:
    """Ratios, read, self and neurons of one unpadded sample, from whole attention maps, one head at a time."""
    config, layers = model.config.text_config, model.model.language_model.layers
    values: dict[int, Tensor] = {}
    activations: dict[int, Tensor] = {}
    hooks = [layer.self_attn.v_proj.register_forward_hook(keep(values, at, output=True)) for at, layer in enumerate(layers)]
    hooks += [layer.mlp.down_proj.register_forward_hook(keep(activations, at, output=False)) for at, layer in enumerate(layers)]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    visual = batch["input_ids"][0] == IMAGE_TOKEN
    reading = ~visual & (visual.cumsum(0) > 0)
    head_dim = layers[0].self_attn.head_dim
    found: dict[str, list[Any]] = {"ratios": [], "read": [], "self_": [], "neurons": []}
    for at, layer in enumerate(layers):
        for head in range(config.num_attention_heads):
            attention = attentions[at][0, head]
            group = head // layer.self_attn.num_key_value_groups
            value = values[at][:, group * head_dim : (group + 1) * head_dim]
            columns = layer.self_attn.o_proj.weight[:, head * head_dim : (head + 1) * head_dim]
            found["ratios"].append(attention[reading][:, visual].sum() / attention[reading][:, ~visual].sum())
            found["read"].append((attention[reading][:, visual] @ value[visual] @ columns.T).norm(dim=-1).mean())
            found["self_"].append((attention[visual] @ value @ columns.T).norm(dim=-1).mean())
        rms = activations[at][visual].square().mean(0).sqrt()
        found["neurons"].append(rms * layer.mlp.down_proj.weight.norm(dim=0))
    return {name: torch.stack(parts).view(len(layers), -1).detach().double() for name, parts in found.items()}


def assert_equal(first: Statistics, second: Statistics) -> None:
    for field in fields(Statistics):
        here, there = getattr(first, field.name), getattr(second, field.name)
        if isinstance(here, Tensor):
            torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
        else:
            assert here == there, field.name


@pytest.mark.parametrize("name", MODELS)
def test_one_sample_equals_the_slow_twin(name: str) -> None:
    model, config = tiny_llava(**MODELS[name])
    found = calibrate(model, [single(config, 0)], fingerprint="model")
    expected = twin(model, single(config, 0))
    for field in ("read", "self_", "neurons"):
        torch.testing.assert_close(getattr(found, field), expected[field], rtol=1e-5, atol=1e-6)
    assert torch.equal(found.ratios.argmax(-1), bins_of(expected["ratios"]))
    assert torch.equal(found.ratios.sum(-1), torch.ones(2, 4, dtype=torch.int64))


def test_means_are_over_rows_and_counts_over_samples() -> None:
    model, config = tiny_llava()
    batches = [single(config, index) for index in range(len(PROMPTS))]
    found = calibrate(model, batches, fingerprint="model")
    parts = [twin(model, batch) for batch in batches]
    after = torch.tensor([float(after) for _, after in PROMPTS], dtype=torch.float64)
    reads = torch.stack([part["read"] for part in parts])
    torch.testing.assert_close(found.read, (reads * after[:, None, None]).sum(0) / after.sum(), rtol=1e-5, atol=1e-6)
    neurons = torch.stack([part["neurons"] for part in parts]).square().mean(0).sqrt()  # all have as many visual rows
    torch.testing.assert_close(found.neurons, neurons, rtol=1e-5, atol=1e-6)
    ratios = torch.stack([bins_of(part["ratios"]) for part in parts], -1)
    assert torch.equal(found.ratios, torch.zeros_like(found.ratios).scatter_add_(2, ratios, torch.ones_like(ratios, dtype=torch.int32)))


@pytest.mark.parametrize("name", MODELS)
def test_batches_padding_and_chunks_change_nothing(name: str) -> None:
    model, config = tiny_llava(**MODELS[name])
    batches = [single(config, index) for index in range(len(PROMPTS))]
    expected = calibrate(model, batches, fingerprint="model")
    assert_equal(calibrate(model, [padded(batches[:3]), padded(batches[3:])], fingerprint="model"), expected)
    assert_equal(calibrate(model, [padded(batches[::-1])], fingerprint="model", chunk_elements=700), expected)


def test_no_more_of_a_map_than_asked_for_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = tiny_llava()
    sizes: list[int] = []
    attend = recorder._attend

    def watched(query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        sizes.append(query.shape[:3].numel() * key.shape[2])
        return attend(query, key, *rest)

    monkeypatch.setattr(recorder, "_attend", watched)
    calibrate(model, [single(config, 0)], fingerprint="model", chunk_elements=500)
    tokens = 3 + 16 + 4
    assert max(sizes) == 4 * 5 * tokens  # 4 heads, 5 queries
    assert sum(sizes) == 2 * 4 * tokens**2  # 2 layers


def test_merging_equals_calibrating_on_all() -> None:
    model, config = tiny_llava()
    batches = [single(config, index) for index in range(len(PROMPTS))]
    first, second = (calibrate(model, part, fingerprint="model") for part in (batches[:2], batches[2:]))
    whole = calibrate(model, batches, fingerprint="model")
    assert_equal(merge(first, second), whole)
    assert_equal(merge(second, first), whole)


def test_the_hash_is_of_tokens_and_pixels() -> None:
    model, config = tiny_llava()
    batches = [single(config, 0), single(config, 0), single(config, 0)]
    batches[1]["pixel_values"][0, 0, 0, 0] += 1
    batches[2]["input_ids"][0, 0] += 1
    assert len({calibrate(model, [batch], fingerprint="model").data for batch in batches}) == 3


def test_several_images_are_the_grids_of_one_sample() -> None:
    model, config = tiny_llava()
    found = calibrate(model, [single(config, 0), single(config, 1, images=3), single(config, 2, images=2)], fingerprint="model")
    assert found.grids == (Grid(4, 4),) * 2
    assert found.layouts == tuple(((Grid(4, 4),) * images, 1) for images in (1, 2, 3))
    assert found.visual_rows == 6 * 16


def test_pictures_and_videos_have_grids_of_their_own() -> None:
    model = tiny_qwen()
    visuals = family_of(model.config.to_dict()).visuals(model.config.to_dict())
    inputs, grids = qwen_inputs([(1, 3, 4)], [(3, 2, 3), (1, 2, 2)], [(1, 4, 4)])  # rows and columns; three frames
    found = calibrate(model, [inputs], fingerprint="model")
    assert dict(found.layouts) == {tuple(layout): 1 for layout in grids}
    assert found.grids == (Grid(4, 4),)  # of 12, 16 and 22 tokens
    turned = {**inputs, "image_grid_thw": inputs["image_grid_thw"][:, [0, 2, 1]]}
    assert hash_of(turned, visuals) != hash_of(inputs, visuals) == found.data


def test_the_model_is_as_before() -> None:
    model, config = tiny_llava()

    def failing() -> Iterator[BatchFeature]:
        yield single(config, 0)
        raise KeyboardInterrupt

    before = model(**single(config, 0)).logits
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, failing(), fingerprint="model")
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(**single(config, 0)).logits, before)


def test_recording_does_not_change_the_output() -> None:
    model, config = tiny_llava(kv_heads=2)
    last: dict[str, Tensor] = {}
    model.model.language_model.norm.register_forward_hook(lambda *call: last.update(hidden=call[2]))
    batch = padded([single(config, 0), single(config, 1)])
    model(**batch)
    expected = last["hidden"]
    calibrate(model, [batch], fingerprint="model")
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(last["hidden"][valid], expected[valid], rtol=1e-5, atol=1e-5)


def test_progress_counts_samples() -> None:
    model, config = tiny_llava()
    calls: list[tuple[int, int | None]] = []
    batches = [padded([single(config, 0), single(config, 1)]), single(config, 2)]
    calibrate(model, batches, fingerprint="model", total=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 3), (3, 3)]


def test_a_sample_without_image_or_question_is_named() -> None:
    model, config = tiny_llava()
    with pytest.raises(YopoError, match="sample 2 has no image"):
        calibrate(model, [single(config, 0), tiny_inputs(config, (3, 3), images=0)], fingerprint="model")
    with pytest.raises(YopoError, match="sample 1 has no text after its image"):
        calibrate(model, [tiny_inputs(config, (3, 0))], fingerprint="model")
    with pytest.raises(YopoError, match="no calibration sample"):
        calibrate(model, [], fingerprint="model")


def test_nan_weights_are_noticed() -> None:
    model, config = tiny_llava()
    model.model.language_model.layers[1].self_attn.o_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(YopoError, match="NaN or infinite values in layer 1"):
        calibrate(model, [single(config, 0)], fingerprint="model")


def test_quantiles_are_votes() -> None:
    """Of 100 ratios 2^-10 .. 2^-0.1 one in each step of 2^0.1, 40 lie above 2^-4.05: the alpha that exactly 40 exceed."""
    ratios = torch.exp2(torch.arange(-100, 0) / 10)
    counts = torch.bincount(bins_of(ratios), minlength=BINS)
    alpha = value_exceeded_by(counts, 40)
    assert (ratios > alpha).sum() == 40
    assert value_exceeded_by(counts, 99.5) < ratios[1]
    assert value_exceeded_by(counts, 0) > ratios[-1]


def test_quantiles_lie_within_a_bin_by_share() -> None:
    """Four ratios in bin 160 and two in bin 170: three exceed what lies three quarters up bin 160, one the middle of bin 170."""
    counts = torch.zeros(2, BINS, dtype=torch.int32)
    counts[:, 160], counts[:, 170] = 4, 2
    bins = torch.tensor([160.75, 170.5], dtype=torch.float64)
    found = torch.stack([value_exceeded_by(counts, 3)[0], value_exceeded_by(counts, 1)[1]])
    torch.testing.assert_close(found, torch.exp2(bins / 16 - 24))


def test_ratios_beyond_the_bins_are_counted_in_the_outermost() -> None:
    assert bins_of(torch.tensor([0.0, 1e-30, 1e30, torch.inf])).tolist() == [0, 0, BINS - 1, BINS - 1]


@pytest.fixture
def measured() -> Statistics:
    model, config = tiny_llava()
    return calibrate(model, [single(config, 0), single(config, 1)], fingerprint="abc")


def test_a_file_holds_everything_and_is_the_same_each_time(measured: Statistics, tmp_path: Path) -> None:
    for name in ("first", "second"):
        measured.save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    loaded = Statistics.load(tmp_path / "first")
    for field in fields(Statistics):
        here, there = getattr(measured, field.name), getattr(loaded, field.name)
        assert torch.equal(here, there) if isinstance(here, Tensor) else here == there


def test_statistics_of_another_model_are_refused(measured: Statistics) -> None:
    assert measured.of_model("abc") is measured
    with pytest.raises(YopoError, match="of another model"):
        measured.of_model("xyz")
    with pytest.raises(YopoError, match="of another model"):
        merge(measured, replace(measured, model="xyz"))


def test_other_files_are_refused(measured: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    with pytest.raises(YopoError, match="cannot be read"):
        Statistics.load(path)
    path.write_text("text")
    with pytest.raises(YopoError, match="is not a safetensors file"):
        Statistics.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(YopoError, match="not one of statistics"):
        Statistics.load(path)
    save_file({"a": torch.zeros(1)}, path, {METADATA_KEY: json.dumps({"schema": 2})})
    with pytest.raises(YopoError, match="schema 2, this version reads 1"):
        Statistics.load(path)
    save_file({"a": torch.zeros(1)}, path, {METADATA_KEY: json.dumps({"schema": 1, "colour": 1})})
    with pytest.raises(YopoError, match=r"The metadata of .* lacks read_rows"):
        Statistics.load(path)


IMPOSSIBLE: dict[str, tuple[Callable[[Statistics], dict[str, Any]], str]] = {
    "NaN": (lambda found: {"read_sum": found.read_sum * float("nan")}, "read_sum has values that are negative, infinite or NaN"),
    "negative": (lambda found: {"self_sum": -found.self_sum}, "self_sum has values that are negative"),
    "another type": (lambda found: {"neuron_sum": found.neuron_sum.float()}, "neuron_sum is torch.float32"),
    "another shape": (lambda found: {"ratios": found.ratios[:, :, 0]}, "ratios is torch.int32"),
    "fewer layers": (lambda found: {"self_sum": found.self_sum[1:]}, "of different layers and heads"),
    "more samples": (lambda found: {"samples": found.samples + 1}, "does not count"),
    "no samples": (lambda found: {"samples": 0}, "samples is 0, but"),
    "no rows": (lambda found: {"visual_rows": 0}, "visual_rows is 0, but"),
    "no layouts": (lambda found: {"layouts": ()}, "layouts is .*, but list should have"),
    "a grid without rows": (lambda found: {"layouts": (((Grid(0, 1),), found.samples),)}, "layouts.* is 0, but"),
    "an endless grid": (lambda found: {"layouts": (((Grid(10**9, 10**9),), found.samples),)}, "the visual tokens of all grids is"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_statistics_that_cannot_have_been_measured(case: str, measured: Statistics, tmp_path: Path) -> None:
    changes, sentence = IMPOSSIBLE[case]
    replace(measured, **changes(measured)).save(tmp_path / "statistics")
    with pytest.raises(YopoError, match=sentence):
        Statistics.load(tmp_path / "statistics")


def write(tmp_path: Path, *lines: str) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n" * bool(lines))
    return path


GOOD = '{"image": "a.png", "question": "what?"}'


def test_samples_are_read_relative_to_their_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, '{"id": 7, "image": "a.png", "question": "why?", "answer": "so", "kind": "reason"}')
    first, second = read_samples(path)
    assert first == Sample(tmp_path / "a.png", "what?", place=f"{path}, line 1")
    assert (second.answer, second.kind) == ("so", "reason")
    assert first.picture().size == (8, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2 is empty"),
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2: it is .1., but input should be a valid dictionary"),
        ('{"image": "a.png"}', "line 2 lacks question"),
        ("{}", "line 2 lacks question"),
        ('{"image": 3, "question": "what?"}', "line 2: image is 3, but input should be a valid string"),
        ('{"image": "a.png", "question": "what?", "answer": null}', "line 2: answer is None, but"),
        ('{"image": "a.png", "question": "what?", "anwser": "x"}', "line 2 has an unknown key: anwser"),
        ('{"image": "a.png", "question": "what?", "question": "why?"}', "line 2 is not used: the key .question. is there twice"),
        ('{"image": "a.png", "question": "\\ud800"}', "line 2 is not used: it holds half of a character"),
        ('{"image": "a.png", "question": "what?", "id": ' + "[" * 99 + "]" * 99 + "}", "line 2 is nested deeper than 64 levels"),
        ('{"image": "a.png", "question": "what?", "id": 1' + "0" * 99 + "}", "line 2 is not used: a number has 100 digits"),
        ('{"image": "a.png", "question": "what?", "id": NaN}', "line 2 is not used: NaN is not a finite number"),
        ('{"image": "b.png", "question": "what?"}', "line 2: there is no image .*b.png"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(YopoError, match=message) as caught:
        read_samples(write(tmp_path, GOOD, line, GOOD))
    assert caught.value.hint


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(YopoError, match="is empty"):
        read_samples(write(tmp_path))
    with pytest.raises(YopoError, match="does not exist"):
        read_samples(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(YopoError, match="line 1 is not UTF-8"):
        read_samples(tmp_path / "binary.jsonl")
    (tmp_path / "long.jsonl").write_text(json.dumps({"image": "a.png", "question": "a" * 2**20}))
    with pytest.raises(YopoError, match="line 1 is longer than"):
        read_samples(tmp_path / "long.jsonl")


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    """U+2028 and a form feed are text; a carriage return before the end of a line is none."""
    path = write(tmp_path, GOOD.replace("what", "a\u2028b") + "\r", GOOD)
    assert [sample.question for sample in read_samples(path)] == ["a\u2028b?", "what?"]


def test_an_unreadable_image_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for broken in (b"not a picture", whole[: len(whole) // 2]):
        (tmp_path / "a.png").write_bytes(broken)
        with pytest.raises(YopoError, match=r"line 1: the image .*a\.png cannot be read"):
            read_samples(path)[0].picture()


def test_prompts_end_where_the_assistant_speaks() -> None:
    processor = AutoProcessor.from_pretrained(DEMO)
    image = Image.new("RGB", (96, 96))
    texts = [prompt(processor, "what color is the circle?", 1, answer) for answer in (None, "red")]
    asked, answered = (processor.tokenizer.decode(encode(processor, [text], [image])["input_ids"][0]) for text in texts)
    assert asked.count("<image>") == 144
    assert asked.count("<s>") == 1
    assert asked.endswith("circle ? ASSISTANT:")
    assert answered.removesuffix(" </s>") == f"{asked} red"
