"""Healing on the demo model: accuracy on unseen questions before and after, budget by budget, with paired 95 % intervals.

One cell is a seed and a budget; each is a JSON line in the record, and those that are there are not run again. What is expensive and
shared (the search, the dense model's answers, the questions' rows) is kept in the scratch folder. Accuracy is exact match of the whole
answer, decided by the expected answer's tokens teacher-forced, which is what greedy decoding gives.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from converters.calibration.statistics import calibrate
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.checkpoint.source import Source
from converters.convert import Provenance, convert
from converters.healing.answers import Answers, Record
from converters.healing.student import answer_rows, collate
from converters.planning.answers import language_model_pass
from converters.planning.frontier import Frontier
from converters.planning.search import search
from yopo_cli.healing import Request, heal_model
from yopo_cli.loader import Dtype, demo_folder, load
from yopo_cli.prompts import encode_examples
from yopo_cli.samples import Example, batches, bundled_examples

PLANNED_ON, BATCH = 48, 32
BUDGETS = (0.06, 0.03, 0.12)


def frontier_of(seed: int, folder: Path) -> Frontier:
    """One search for all budgets."""
    file = folder / "frontier.json"
    if not file.exists():
        loaded = load(demo_folder(), "cpu", Dtype.FLOAT32)
        checkpoint = open_checkpoint(demo_folder())
        asked = list(bundled_examples(PLANNED_ON, seed, "calibration").stream())
        taught = [encode_examples(loaded.processor, batch, answers=True) for batch in batches(asked, 4)]
        plain = [encode_examples(loaded.processor, batch) for batch in batches(asked, 16)]
        statistics = calibrate(loaded.model, taught, fingerprint=checkpoint.fingerprint())
        search(loaded.model, plain, statistics, sorted(BUDGETS), seed=seed, state=folder / "search").save(file)
    return Frontier.load(file)


def pruned(seed: int, budget: float, folder: Path) -> Path:
    """The demo under the plan that the search gives for a budget."""
    out = folder / f"demo-{budget:g}"
    if not out.exists():
        plan = frontier_of(seed, folder).at(budget).plan
        provenance = Provenance(Source("demo", demo_folder()), f"benchmarks/heal_demo.py --seed {seed}", budget, "auto")
        convert(open_checkpoint(demo_folder()), plan, out, provenance)
    return out


def expected(model: Any, processor: Any, examples: Sequence[Example]) -> Iterator[Record]:
    """Records of questions with their right answers, and the dense model's rows for them."""
    inputs = encode_examples(processor, examples)
    tokens = [[*processor.tokenizer(one.answer, add_special_tokens=False).input_ids, processor.tokenizer.eos_token_id] for one in examples]
    width = max(map(len, tokens))
    new = torch.tensor([row + [processor.tokenizer.pad_token_id] * (width - len(row)) for row in tokens])
    present = torch.tensor([[place < len(row) for place in range(width)] for row in tokens])
    ids, mask = torch.cat([inputs["input_ids"], new], 1), torch.cat([inputs["attention_mask"].bool(), present], 1)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(model.projector).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        rows, _ = language_model_pass(model, {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": inputs["pixel_values"]})
    hook.remove()
    for sample, answer in enumerate(tokens):
        last = inputs["input_ids"].shape[1] - 1
        yield Record(ids[sample, mask[sample]], None, seen[0][sample], rows[sample, last : last + len(answer)])


def questions(model: Any, processor: Any, count: int, seed: int, folder: Path) -> Answers:
    """Unseen questions with their right answers; `model` runs densely."""
    held = Answers(folder / "questions", count, {"seed": seed, "count": count})
    missing = set(held.missing())
    for number, batch in enumerate(batches(bundled_examples(count, seed, "eval").stream(), BATCH)):
        if number * BATCH in missing:
            for place, record in reversed(list(enumerate(expected(model, processor, batch)))):
                held.put(number * BATCH + place, record)
    return held


@torch.inference_mode()
def right(model: Any, held: Answers, dense: bool = False) -> torch.Tensor:
    """Which questions are answered right, bool [questions]; `dense`: by the rows that the records hold."""
    found = []
    for start in range(0, len(held), BATCH):
        records = [held[index] for index in range(start, min(start + BATCH, len(held)))]
        batch = collate(records)
        rows = batch["dense"] if dense else answer_rows(model, model.config.image_token_id, batch)
        wanted = batch["labels"][batch["labels"] != -100]
        same = (model.lm_head(rows).argmax(-1) == wanted).split([len(record.dense) for record in records])
        found += [bool(answer.all()) for answer in same]
    return torch.tensor(found)


def difference(after: torch.Tensor, before: torch.Tensor) -> dict[str, float]:
    """Mean of the paired differences in points of accuracy, and the half-width of its 95 % interval (normal)."""
    points = 100 * (after.double() - before.double())
    return {"points": round(float(points.mean()), 3), "interval": round(1.96 * float(points.std()) / math.sqrt(len(points)), 3)}


def cell(seed: int, budget: float, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.scratch / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    began, cpu = time.monotonic(), time.process_time()
    out = pruned(seed, budget, folder)
    reached = open_converted(out).section["budget"]["reached"]
    searched, began_cpu = time.process_time() - cpu, time.process_time()
    request = Request(
        data=Path("demo"), steps=options.steps, samples=options.samples, seed=seed, batch_size=BATCH, micro_batch=None,
        rate=options.rate, recompute=False, answers=folder / "answers", device="cpu", dtype=Dtype.FLOAT32, command="heal",
    )  # fmt: skip
    healed_folder = folder / f"demo-{budget:g}-healed"
    healing = heal_model(out, request, healed_folder, force=True)
    healed_cpu = time.process_time() - began_cpu
    before, after = (load(path, "cpu", Dtype.FLOAT32) for path in (out, healed_folder))
    with before.model.dense():
        held = questions(before.model, before.processor, options.questions, seed, folder)
    dense, cut, healed = right(before.model, held, dense=True), right(before.model, held), right(after.model, held)
    accuracies = {name: round(float(one.double().mean()), 4) for name, one in (("dense", dense), ("pruned", cut), ("healed", healed))}
    return {
        "seed": seed, "budget": budget, "reached": round(reached, 5), **accuracies,
        "retention_before": round(accuracies["pruned"] / accuracies["dense"], 4),
        "retention_after": round(accuracies["healed"] / accuracies["dense"], 4),
        "healed_minus_pruned": difference(healed, cut), "healed_minus_dense": difference(healed, dense),
        "healing": {key: value for key, value in healing.items() if key not in ("command", "data")},
        "cpu_seconds": {"search": round(searched), "healing": round(healed_cpu)}, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--record", type=Path, default=Path(__file__).with_name("heal-demo.jsonl"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--steps", type=int, default=345)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--questions", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in options.record.read_text().splitlines()] if options.record.exists() else []
    known = {(line["seed"], line["budget"], line["healing"]["steps"], line["healing"]["learning_rate"]) for line in done}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    facts = {"date": str(date.today()), "questions": options.questions, **versions, "machine": "x86-64 (AMD EPYC), 2 cores, 24 GB"}
    for seed in map(int, options.seeds.split(",")):
        for budget in map(float, options.budgets.split(",")):
            if (seed, budget, options.steps, options.rate) in known:
                continue
            line = json.dumps({**facts, **cell(seed, budget, options)})
            with options.record.open("a", encoding="utf-8") as record:
                record.write(line + "\n")
            print(line, flush=True)
            print(f"seed {seed}, budget {budget}: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
