"""Adapters on pruned models: what a LoRA adapter of the dense model taught, and how much of it is left on a pruned one.

`python -m benchmarks.adapters --model demo --set demo` teaches the dense model another answer to questions of colour (the next one in the
list of colours), by LoRA on all projections of the language model, and asks unseen questions of all kinds, with the new answers: the
dense model without and with the adapter, and the study's plan of a budget with the adapter that `yopo adapt` converted, on both sides,
and with the adapter merged first. Adapters are kept in the scratch folder. Prints a table of Markdown.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional

from benchmarks.heal import UNSEEN, model_right
from benchmarks.quantised import base_of, pruned
from benchmarks.study import BATCH, Setting, Subject, continued
from benchmarks.study_report import OURS, drawn, interval
from converters.adapters.adapt import adapt
from converters.adapters.merge import with_adapter
from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.reader import open_checkpoint
from converters.checkpoint.source import Source
from converters.data.demo.sets import samples as questions_of
from converters.data.demo.shapes import COLORS
from converters.loading import Dtype, load
from converters.planning.fitting import fit_compensations
from converters.planning.search.search import usual_effort

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def new_answer(answer: str) -> str:
    """What the adapter teaches: of a colour the next one."""
    names = [*COLORS]
    return names[(names.index(answer) + 1) % len(names)] if answer in names else answer


def lessons(subject: Subject, steps: int) -> Iterator[tuple[Any, list[str]]]:
    """Batches of questions that no model was trained on and no exam asks, with the new answers."""
    found = iter(questions_of(subject.setting.questions_from, steps * BATCH, UNSEEN, "train"))
    for _ in range(steps):
        part = [next(found) for _ in range(BATCH)]
        texts = [subject.chat(one.question) for one in part]
        inputs = subject.processor(text=texts, images=[one.image for one in part], return_tensors="pt", padding=True)
        yield inputs, [new_answer(one.answer) for one in part]


def taught(subject: Subject, steps: int, rate: float, folder: Path) -> Path:
    """An adapter of the dense model, trained unless it is there."""
    if (folder / "adapter_config.json").exists():
        return folder
    targets = rf".*language_model.*({'|'.join(PROJECTIONS)})"
    torch.manual_seed(0)
    model = load(base_of(subject.setting), "cpu", Dtype.FLOAT32).model
    whole = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets)).train()
    parameters = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for number, (inputs, answers) in enumerate(lessons(subject, steps)):
        given, predicts, tokens = continued(model, subject.processor, inputs, answers)
        loss = functional.cross_entropy(whole(**given, use_cache=False).logits[predicts], tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if number % 20 == 0:
            print(f"step {number} of {steps}: {loss.item():.4f}", flush=True)
    whole.save_pretrained(folder)
    return folder


def merged_first(subject: Subject, adapter: Path, budget: float, seed: int, place: Path) -> Path:
    """The same plan of the model with the adapter merged into it, K and V fitted to that."""
    setting = subject.setting
    provenance = Provenance(Source(setting.model, base_of(setting)), "adapters")
    base = convert(with_adapter(open_checkpoint(base_of(setting)), adapter), None, place / "merged", provenance, force=True)
    found = subject.frontier(OURS, seed, usual_effort(subject.sizes.num_hidden_layers), setting.samples)
    plan, tuned = found.at(budget).plan, load(base, "cpu", Dtype.FLOAT32)
    refits = fit_compensations(tuned.model, subject.questions(setting.samples, seed), plan) if found.compensated else {}
    return convert(open_checkpoint(base), plan, place / "merged-pruned", provenance, refits=refits, force=True)


def rows(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, list[bool]]]:
    """Who was asked, and which answers are the new ones."""
    setting, place = subject.setting, options.scratch / f"{Path(options.model).name}-{options.set}"
    adapter = taught(subject, options.steps, options.rate, place / "adapter")
    inputs, expected = subject.exam
    exam = inputs, [[new_answer(answer) for answer in batch] for batch in expected]
    processor = subject.processor
    yield "dense", model_right(subject.model, processor, exam)
    dense = load(base_of(setting), "cpu", Dtype.FLOAT32).model
    merged = PeftModel.from_pretrained(dense, adapter).eval().base_model.model
    yield "dense, with the adapter", model_right(merged, processor, exam)
    out = pruned(subject, options.budget, options.seed, options.scratch)
    converted = adapt(adapter, out, place / "converted", force=True).output
    own = load(out, "cpu", Dtype.FLOAT32).model
    yield "pruned", model_right(own, processor, exam)
    whole = PeftModel.from_pretrained(own, converted).eval().base_model.model
    with whole.dense():
        yield "pruned, with the converted adapter, dense side", model_right(whole, processor, exam)
    yield "pruned, with the converted adapter", model_right(whole, processor, exam)
    first = load(merged_first(subject, adapter, options.budget, options.seed, place), "cpu", Dtype.FLOAT32).model
    yield "pruned, the adapter merged first", model_right(first, processor, exam)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, or the name of an evidence model")
    parser.add_argument("--set", default="demo", help="the question set: demo, harder, sizes")
    parser.add_argument("--budget", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration that the plan was searched on")
    parser.add_argument("--samples", type=int, default=128, help="questions that the plan was searched on")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--scratch", type=Path, default=Path("build/adapters"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Path(__file__).parent / "study" / "adapters.jsonl"
    subject = Subject(Setting(options.model, options.set, options.questions, options.samples, (options.budget,), record))
    print(
        f"| {options.model} on `{options.set}`, {options.questions} questions | new answers, % | against dense with the adapter, points |"
    )
    print("|---|---|---|")
    reference = None
    for name, right in rows(subject, options):
        outcomes = np.array(right, dtype=float)
        reference = outcomes if name == "dense, with the adapter" else reference
        shown = ""
        if reference is not None and reference is not outcomes:
            difference = outcomes - reference
            found = interval(difference.mean(), drawn(len(difference)) @ difference / len(difference))
            shown = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * share for share in found))
        print(f"| {name} | {100 * outcomes.mean():.1f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
