"""The measured planner on the demo model: accuracy on unseen questions at every budget, beside the recipes and presets.

Prints the plans' accuracies as they come on stderr and one JSON line last. Accuracy is exact match of the whole answer, decided by
the expected answer's tokens teacher-forced, which is what greedy decoding gives.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

from converters.calibration.statistics import calibrate
from converters.errors import YopoError
from converters.planning.answers import Answered, language_model_pass
from converters.planning.presets import PRESETS, preset
from converters.planning.recipes import RECIPES, make_plan
from converters.planning.search import Effort, search, usual_effort
from converters.planning.trial import Trials
from converters.runtime.plan import Plan, dense_plan, normalise
from yopo_cli.demo.shapes import samples

BATCH = 24


def batches(processor: Any, count: int, seed: int, split: str, answers: bool) -> Iterator[tuple[Any, list[str]]]:
    """Left-padded processor outputs of questions, with their answers appended where asked for, and the expected answers."""
    found = list(samples(count, seed, split))
    for start in range(0, count, BATCH):
        part = found[start : start + BATCH]
        texts = []
        for sample in part:
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
            if answers:
                chat.append({"role": "assistant", "content": [{"type": "text", "text": sample.answer}]})
            texts.append(processor.apply_chat_template(chat, add_generation_prompt=not answers))
        inputs = processor(text=texts, images=[sample.image for sample in part], return_tensors="pt", padding=True)
        yield inputs, [sample.answer for sample in part]


def taught(model: Any, processor: Any, batch: Any, expected: list[str]) -> tuple[Answered, torch.Tensor]:
    """The batch with the expected answers appended, and their tokens in order."""
    tokenizer = processor.tokenizer
    tokens = [[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for answer in expected]
    width = max(map(len, tokens))
    new = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in tokens])
    present = torch.tensor([[place < len(row) for place in range(width)] for row in tokens])
    whole = torch.cat([batch["input_ids"], new], 1)
    mask = torch.cat([batch["attention_mask"].bool(), present], 1)
    with torch.inference_mode():
        inputs = {"input_ids": whole, "attention_mask": mask.long(), "pixel_values": batch["pixel_values"]}
        rows, seen = language_model_pass(model, inputs)
    predicts = torch.zeros_like(mask)
    predicts[:, batch["input_ids"].shape[1] - 1 : -1] = present
    visual = mask & (whole == model.config.image_token_id)
    return Answered(seen["inputs_embeds"], seen.get("position_ids"), mask, visual, predicts, rows[predicts]), new[present]


class Exam:
    """Unseen questions, and how many of them a plan answers right."""

    def __init__(self, model: Any, processor: Any, count: int, seed: int, dense: Plan) -> None:
        pairs = [taught(model, processor, batch, expected) for batch, expected in batches(processor, count, seed, "eval", False)]
        self.trials = Trials(model, [answered for answered, _ in pairs], dense, memory_bytes=8 * 10**9)
        self.expected = [tokens for _, tokens in pairs]

    @torch.inference_mode()
    def accuracy(self, plan: Plan | None) -> float:
        """The share of questions answered right; None: by the dense model."""
        right = 0
        shown = self.trials._logits(normalise(self.trials.plan if plan is None else plan), 0)
        for (batch, pruned, _), tokens in zip(shown, self.expected, strict=True):
            right += sum(bool(answer.all()) for answer in (pruned.argmax(-1) == tokens).split(batch.lengths))
        self.trials.prefixes.discard()
        return right / self.trials.samples


def others(statistics: Any, dense: Plan, budget: float) -> dict[str, Plan]:
    """What recipes and presets make of a budget, where they reach it."""
    found = {name: make_plan(name, statistics, dense.sizes, dense.grids, budget) for name in RECIPES}
    for name in PRESETS:
        with suppress(YopoError):
            found[name] = preset(name, statistics, dense.sizes, dense.grids, budget)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("yopo_cli/demo/model"))
    parser.add_argument("--budgets", default="0.5,0.25,0.12,0.06,0.04")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--forwards", type=float)
    parser.add_argument("--descents", type=float, default=Effort(1).descents, help="share of the forwards for descents; 1: no swaps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frontier", type=Path, help="write the frontier here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    processor = AutoProcessor.from_pretrained(options.model)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32)

    def questions(answers: bool) -> Iterator[Any]:
        return (batch for batch, _ in batches(processor, options.samples, options.seed, "calibration", answers))

    statistics = calibrate(model, questions(True), fingerprint="demo")
    effort = usual_effort(model.config.text_config.num_hidden_layers)
    effort = Effort(options.forwards or effort.forwards, effort.block, options.descents)
    began, cpu = time.monotonic(), time.process_time()
    budgets = [float(budget) for budget in options.budgets.split(",")]

    def tell(report: Any) -> None:
        print(f"{report.forwards:6.1f} {report.share:.4f} {report.kl:.5f} {report.stage}", file=sys.stderr, flush=True)

    frontier = search(model, questions(False), statistics, budgets, seed=options.seed, effort=effort, progress=tell)
    record: dict[str, Any] = {"forwards": frontier.forwards, "seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    if options.frontier:
        frontier.save(options.frontier)
    exam = Exam(model, processor, options.questions, options.seed, frontier.path[0].plan)
    record["dense"] = exam.accuracy(None)
    print(record, file=sys.stderr, flush=True)
    dense = dense_plan(frontier.path[0].plan.sizes, frontier.path[0].plan.grids)
    record["budgets"] = []
    for point in frontier.asked:
        assert point.asked is not None
        plans = {"auto": point.plan, **others(statistics, dense, point.asked)}
        accuracies = {name: round(exam.accuracy(plan), 4) for name, plan in plans.items()}
        facts = {"asked": point.asked, "reached": round(point.share, 5), "kl": round(point.kl, 6), "origin": point.origin}
        record["budgets"].append(facts | accuracies)
        print(record["budgets"][-1], file=sys.stderr, flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    facts = {"samples": options.samples, "seed": options.seed, "questions": options.questions, "threads": options.threads}
    print(json.dumps({"date": str(date.today()), **facts, **versions, **record}))


if __name__ == "__main__":
    main()
