"""Healing in parts, on tiny models: what is learned from, what is learned, what is written, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversions import load, provenance, text_rows
from support.exports import decoders
from support.healed import RECORD, SETTINGS, answered, pruned_llava, trained
from support.random_plans import random_plan
from support.tiny import tiny_inputs
from support.tiny_families import internvl_inputs, next_inputs, qwen_inputs, smol_inputs, tiny_internvl, tiny_next, tiny_qwen, tiny_smol
from torch import nn

from converters.checkpoint.convert import convert
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.errors import YopoError
from converters.healing.answers import Answers, TeacherAnswer
from converters.healing.memory import Memory, check, needed
from converters.healing.student import IGNORED, Student, answer_rows, collate
from converters.healing.training import TrainingOutcome, accumulation, last_checkpoint
from converters.healing.tuning import RANK, tuned_language
from converters.healing.written import healed_card, write_healed
from converters.planning.cost import cost, kv_cache_bytes
from converters.runtime.plan import Grid, LayerPlan, Plan, Sizes


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned_llava(tmp_path_factory.mktemp("healing"))


@pytest.fixture(scope="module")
def learned_from(pruned: Path) -> list[TeacherAnswer]:
    """Eight records, and four of them again: to a model of random weights other questions are no kin, and would not get better."""
    model = load(pruned)
    found = answered(model, *(tiny_inputs(model.config, (3, 5), (1, 2), (2, 7), (4, 4), seed=seed) for seed in range(2)))
    return [*found, *found[:4]]


class TestAnswers:
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "internvl", "next", "smolvlm"])
    def test_what_enters_the_projector_gives_the_whole_models_rows(self, tmp_path: Path, family: str) -> None:
        if family == "llava":
            out = pruned_llava(tmp_path)
            model = load(out)
            inputs = tiny_inputs(model.config, (3, 5), (1, 2))
        else:
            qwen = qwen_inputs([(1, 3, 4)], [(1, 2, 2)])[0]
            dense, inputs = {
                "internvl": lambda: (tiny_internvl("qwen2"), internvl_inputs(1, 2)),
                "next": lambda: (tiny_next(), next_inputs([(24, 32)], [(16, 16), (48, 16)])[0]),
                "smolvlm": lambda: (tiny_smol(), smol_inputs(1, 2)),
            }.get(family, lambda: (tiny_qwen(kind=family), qwen))()
            dense.save_pretrained(tmp_path / "dense")
            checkpoint = open_checkpoint(tmp_path / "dense")
            plan = random_plan(checkpoint.sizes, 5, (Grid(4, 4),))
            model = load(convert(checkpoint, plan, tmp_path / "out", provenance(tmp_path / "dense")))
        found = answered(model, inputs)
        with torch.inference_mode():
            rows = answer_rows(model, model.config.image_token_id, collate(found))
            with model.dense():
                dense_rows = answer_rows(model, model.config.image_token_id, collate(found))
            torch.testing.assert_close(dense_rows, torch.cat([record.dense for record in found]), atol=1e-4, rtol=1e-4)
            # The first row of each answer is the last of its prompt, which the whole model computes from the picture.
            whole = model.model(**inputs, use_cache=False).last_hidden_state[:, -1]
        first = torch.tensor([0, *(len(record.dense) for record in found[:-1])]).cumsum(0)
        torch.testing.assert_close(rows[first], whole, atol=1e-4, rtol=1e-4)

    def test_labels_are_the_answers_tokens(self) -> None:
        record = TeacherAnswer(torch.tensor([5, 9, 6, 7, 2]), None, torch.zeros(1, 3), torch.zeros(2, 4))
        longer = replace(record, ids=torch.tensor([5, 9, 9, 6, 7, 7, 2]))
        batch = collate([record, longer])
        assert batch["labels"].tolist() == [[IGNORED] * 4 + [7, 2, IGNORED], [IGNORED] * 4 + [7, 2, IGNORED]]
        assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]

    def test_loss_is_the_divergence_written_out(self, pruned: Path, learned_from: list[TeacherAnswer]) -> None:
        model, batch = load(pruned), collate(learned_from[:3])
        with torch.inference_mode():
            found = Student(model, model.model.multi_modal_projector, model.config.image_token_id)(**batch)
            pruned_p, dense_p = (
                model.lm_head(rows).softmax(-1) for rows in (answer_rows(model, model.config.image_token_id, batch), batch["dense"])
            )
        by_token = [float(sum(p * (p / q).log() for p, q in zip(*pair, strict=True))) for pair in zip(dense_p, pruned_p, strict=True)]
        assert float(found["loss"]) == pytest.approx(sum(by_token) / len(by_token), rel=1e-4)
        assert float(found["divergence"].sum()) == pytest.approx(sum(by_token), rel=1e-4)
        assert found["tokens"].tolist() == [len(record.dense) for record in learned_from[:3]]

    def test_kept_once_and_never_those_of_another_run(self, tmp_path: Path, learned_from: list[TeacherAnswer]) -> None:
        held = Answers(tmp_path / "answers", 3, {"model": "a"})
        held.put(1, learned_from[0])
        again = Answers(tmp_path / "answers", 3, {"model": "a"})
        assert again.missing() == [0, 2]
        assert again[1].dense.equal(learned_from[0].dense)
        with pytest.raises(YopoError, match="answers of another run: model differ"):
            Answers(tmp_path / "answers", 3, {"model": "b"})
        (tmp_path / "answers" / "0000001.safetensors").write_bytes(b"cut")
        with pytest.raises(YopoError, match="cannot be read"):
            again[1]


class TestTraining:
    def test_the_projector_alone_learns(self, pruned: Path, learned_from: list[TeacherAnswer], tmp_path: Path) -> None:
        before = {name: tensor.clone() for name, tensor in load(pruned).state_dict().items()}
        tuned, outcome = trained(pruned, learned_from, tmp_path / "run")
        changed = {name for name, tensor in tuned.model.state_dict().items() if not tensor.equal(before[name])}
        assert changed == {name for name in before if "multi_modal_projector" in name}
        assert outcome.after < outcome.before
        assert outcome.steps == 6
        assert list((tmp_path / "run" / "tensorboard").iterdir())

    @pytest.mark.parametrize("language", [False, True])
    def test_killed_and_resumed_is_uninterrupted(
        self, pruned: Path, learned_from: list[TeacherAnswer], tmp_path: Path, language: bool
    ) -> None:
        def stop(step: int, loss: float | None) -> None:
            if step == 4:
                raise KeyboardInterrupt

        settings = replace(SETTINGS, micro=2)
        whole, expected = trained(pruned, learned_from, tmp_path / "whole", settings, language)
        with pytest.raises(KeyboardInterrupt):
            trained(pruned, learned_from, tmp_path / "killed", settings, language, progress=stop)
        last = last_checkpoint(tmp_path / "killed")
        assert last is not None
        assert last.name == "checkpoint-3"
        (tmp_path / "killed" / "checkpoint-4").mkdir(exist_ok=True)  # killed while it was written
        resumed, found = trained(pruned, learned_from, tmp_path / "killed", settings, language)
        assert (found.before, found.after) == (expected.before, expected.after)
        assert found.after != found.before
        for one, other in zip(resumed.tensors().items(), whole.tensors().items(), strict=True):
            assert one[0] == other[0]
            assert one[1].equal(other[1])
        _, once_more = trained(pruned, learned_from, tmp_path / "killed", settings, language)  # killed after the last step
        assert once_more.after == found.after
        with pytest.raises(YopoError, match="unfinished run with other settings"):
            trained(pruned, learned_from, tmp_path / "killed", replace(SETTINGS, rate=0.5))

    def test_micro_batches_and_recomputing_change_nothing(self, pruned: Path, learned_from: list[TeacherAnswer], tmp_path: Path) -> None:
        _, expected = trained(pruned, learned_from, tmp_path / "whole")
        _, found = trained(pruned, learned_from, tmp_path / "parts", replace(SETTINGS, micro=1))
        assert (found.before, found.after) == pytest.approx((expected.before, expected.after), rel=1e-4)

    def test_batches_must_be_shared_out_evenly(self) -> None:
        assert accumulation(replace(SETTINGS, batch=32, micro=4), 2) == 4
        with pytest.raises(YopoError, match="32 is not a multiple of 3 x 4"):
            accumulation(replace(SETTINGS, batch=32, micro=4), 3)

    def test_kept_only_if_better(self) -> None:
        assert TrainingOutcome(0.5, 0.4, 6, 1).better
        assert not TrainingOutcome(0.5, 0.5, 6, 1).better
        assert not TrainingOutcome(0.5, float("nan"), 6, 1).better


@pytest.fixture(scope="module")
def healed(pruned: Path, learned_from: list[TeacherAnswer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healed")
    tuned, _ = trained(pruned, learned_from, folder / "run")
    return write_healed(open_converted(pruned), tuned.tensors(), RECORD, folder / "out", max_shard_bytes=20_000)


class TestWritten:
    def test_pictures_change_text_does_not_and_the_dense_side_stays(self, pruned: Path, healed: Path) -> None:
        before, after = load(pruned), load(healed)
        pictures, text = tiny_inputs(before.config, (3, 5), (1, 2)), tiny_inputs(before.config, (3, 5), images=0)
        rows = text_rows(pictures)
        with torch.inference_mode():
            assert after(**text).logits.equal(before(**text).logits)
            assert (after(**pictures).logits - before(**pictures).logits)[rows].abs().max() > 1e-3
            with after.dense(), before.dense():
                assert after(**pictures).logits[rows].equal(before(**pictures).logits[rows])

    def test_costs_nothing(self, pruned: Path, healed: Path) -> None:
        before, after = open_converted(pruned).plan, open_converted(healed).plan
        assert cost(after) == cost(before)
        assert kv_cache_bytes(after, after.grids, 64, 2) == kv_cache_bytes(before, before.grids, 64, 2)

    def test_the_graphs_are_the_same(self, pruned: Path, healed: Path, tmp_path: Path) -> None:
        folders = [shutil.copytree(folder, tmp_path / folder.parent.name) for folder in (pruned, healed)]
        for folder in folders:
            decoders(folder, Grid(4, 4))
        for name in ("embed", "prefill", "decode"):
            before, after = (onnx.load(folder / f"{name}.onnx", load_external_data=False).graph for folder in folders)
            assert list(after.node) == list(before.node)
            assert [(one.name, one.dims) for one in after.initializer] == [(one.name, one.dims) for one in before.initializer]

    def test_files_are_checked_and_their_base_is_known(self, pruned: Path, healed: Path) -> None:
        found = open_converted(healed)
        assert found.changed_files() == ()
        assert found.healed
        assert found.open_tensors().tensors.keys() == open_converted(pruned).open_tensors().tensors.keys()
        assert found.dense_fingerprint() == open_converted(pruned).dense_fingerprint() == found.section["base"]["fingerprint"]
        assert found.section["healing"] == [RECORD]
        card = (healed / "README.md").read_text()
        assert '6 steps of 4 questions on 8 of "ours.jsonl"' in card
        assert card.index("## Healing") < card.index("## Use")

    def test_saved_and_loaded_again(self, healed: Path, tmp_path: Path) -> None:
        model = load(healed)
        pictures = tiny_inputs(model.config, (3, 5), (1, 2))
        model.save_pretrained(tmp_path / "saved")
        again = load(tmp_path / "saved")
        with torch.inference_mode():
            assert again(**pictures).logits.equal(model(**pictures).logits)
            with again.dense(), model.dense():
                assert again(**pictures).logits.equal(model(**pictures).logits)
        kept, saved = (open_converted(folder).open_tensors().base for folder in (healed, tmp_path / "saved"))
        assert len(kept) == 4
        assert saved.keys() == kept.keys()

    def test_what_did_not_help_changes_no_tensor(self, pruned: Path, tmp_path: Path) -> None:
        out = write_healed(open_converted(pruned), {}, RECORD | {"kept": False}, tmp_path / "out")
        assert load_file(out / "model.safetensors").keys() == load_file(pruned / "model.safetensors").keys()
        assert not open_converted(out).healed
        assert "did not help" in (out / "README.md").read_text()

    def test_another_base_is_noticed(self, pruned: Path, healed: Path, tmp_path: Path) -> None:
        out = write_healed(open_converted(pruned), {}, RECORD, tmp_path / "out")
        tensors = load_file(out / "model.safetensors")
        tensors["model.language_model.norm.weight"] += 1
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        changed = open_converted(out)
        assert changed.dense_fingerprint() != changed.section["base"]["fingerprint"]
        config = json.loads((out / "config.json").read_text())
        config["yopo"]["base_projector"] = True
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(YopoError, match=r"base projector .* is not whole"):
            open_converted(out).open_tensors()

    def test_healed_again_keeps_one_section(self) -> None:
        card = healed_card("# A model\n\n## Use\n\nSo.\n", [RECORD])
        assert healed_card(card, [RECORD, RECORD]).count("## Healing") == 1
        assert card.startswith("# A model\n\n## Healing\n")
        assert card.endswith("\n## Use\n\nSo.\n")


class TestLanguage:
    def test_merged_is_base_and_added(self, pruned: Path, learned_from: list[TeacherAnswer]) -> None:
        """Every way in which the runtime reads a weight: whole, by rows, in two parts, fused (below)."""
        model = load(pruned)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        tuned = tuned_language(model, open_converted(pruned).open_tensors(), seed=0)
        image, batch = (model.config.image_token_id,), collate(learned_from[:4])
        with torch.no_grad():
            assert answer_rows(model, image, batch).equal(answer_rows(load(pruned), image, batch))
            for one in tuned.part[1].parameters():
                one.normal_(std=0.1)
            expected = answer_rows(model, image, batch)
            pairs = [next(iter(part.values())).weight for part in tuned.part[1]]
            tuned.finish()
            torch.testing.assert_close(answer_rows(model, image, batch), expected)
        names = [name for name, module in load(pruned).model.language_model.named_modules() if isinstance(module, nn.Linear)]
        after = tuned.tensors()
        for name, first, second in zip(names, pairs[::2], pairs[1::2], strict=True):
            stored = f"model.language_model.{name}.weight"
            assert after[stored].dtype == before[stored].dtype
            torch.testing.assert_close(after.pop(stored), before[stored] + second @ first)
        assert {name for name in after if not after[name].equal(before[name])} == set()
        assert all("multi_modal_projector" in name for name in after)

    @pytest.mark.parametrize("family", ["qwen", "phi3"])
    def test_other_families_learn(self, tmp_path: Path, family: str) -> None:
        dense = tiny_qwen() if family == "qwen" else tiny_internvl("phi3")
        inputs = qwen_inputs([(1, 3, 4)], [(1, 2, 2)])[0] if family == "qwen" else internvl_inputs(1, 2)
        dense.save_pretrained(tmp_path / "dense")
        checkpoint = open_checkpoint(tmp_path / "dense")
        out = convert(checkpoint, random_plan(checkpoint.sizes, 3, (Grid(4, 4),)), tmp_path / "out", provenance(tmp_path / "dense"))
        model = load(out)
        found = answered(model, inputs)
        tuned = tuned_language(model, open_converted(out).open_tensors(), seed=0)
        student = Student(model, tuned.part, (model.config.image_token_id,))
        kept = []
        for model.model.language_model.recomputing in (False, True):
            student.zero_grad()
            student(**collate(found))["loss"].backward()
            kept.append([parameter.grad for parameter in student.parameters()])
        for whole, anew in zip(*kept, strict=True):
            torch.testing.assert_close(anew, whole)
        assert sum(bool(gradient.abs().max()) for gradient in kept[0]) > len(kept[0]) / 2  # those of A are 0 while B is
        tuned.finish()
        before = load(out).state_dict()
        assert all(tensor.equal(before[name]) for name, tensor in tuned.tensors().items())

    def test_text_changes_and_the_dense_side_is_gone(
        self, pruned: Path, healed: Path, learned_from: list[TeacherAnswer], tmp_path: Path
    ) -> None:
        tuned, outcome = trained(pruned, learned_from, tmp_path / "run", language=True)
        assert outcome.after < outcome.before
        record = RECORD | {"tune": "language"}
        for folder in (pruned, healed):
            out = write_healed(open_converted(folder), tuned.tensors(), record, tmp_path / f"out-{folder.name}")
            found = open_converted(out)
            assert not found.dense_side
            assert not found.healed
            assert found.open_tensors().base == {}
            card = (out / "README.md").read_text()
            assert "**text-only output has changed too**" in card
            assert "give the base model's logits" not in card
        before, after = load(pruned), load(out)
        text = tiny_inputs(before.config, (3, 5), images=0)
        with torch.inference_mode():
            assert not after(**text).logits.equal(before(**text).logits)
        out = write_healed(open_converted(pruned), {}, record | {"kept": False}, tmp_path / "not-kept")
        assert open_converted(out).dense_side
        assert "give the base model's logits" in (out / "README.md").read_text()


def test_memory_of_7b_does_not_fit_here(pruned: Path) -> None:
    sizes = Sizes(4096, 11008, 32, 32, 32, 128)
    plan = Plan(sizes, tuple(LayerPlan(tuple(range(32)), (), (), None, 2) for _ in range(32)), (Grid(24, 24),))
    checkpoint = replace(open_converted(pruned).open_tensors(), tensors=_tensors_of_7b(open_converted(pruned).open_tensors()))
    whole = needed(checkpoint, plan, 4, 8, False)
    assert whole.weights == pytest.approx(4 * 7.04e9, rel=0.01)
    assert whole.tuned == 16 * (1024 * 4096 + 4096 * 4096)
    assert needed(checkpoint, plan, 4, 8, True).activations < whole.activations / 3
    language = needed(checkpoint, plan, 4, 8, True, RANK)
    assert language.tuned == whole.tuned + 16 * RANK * 2 * (4096 + 11008)
    assert language.activations == needed(checkpoint, plan, 4, 8, True).activations  # adapters are small
    with pytest.raises(YopoError, match=r"Healing needs about 2 x \d\d\.\d GB .*this machine has 24.0 GB free"):
        check(whole, 24 * 10**9, 2, "this machine")
    check(whole, None, 2, "another")
    check(Memory(1, 1, 1), 10**9, 1, "this machine")


def _tensors_of_7b(checkpoint: Any) -> dict[str, Any]:
    info = next(iter(checkpoint.tensors.values()))
    projector = checkpoint.family.projector
    return {
        "rest": replace(info, shape=(6_950_000, 1000)),
        "model.language_model.layers.0.mlp.up_proj.weight": replace(info, shape=(11008, 4096)),
        "model.language_model.layers.0.mlp.down_proj.weight": replace(info, shape=(4096, 11008)),
        projector + "linear_1.weight": replace(info, shape=(4096, 1024)),
        projector + "linear_2.weight": replace(info, shape=(4096, 4096)),
    }
