"""The study: accuracy on unseen questions against visual FLOPs, for every way to prune at equal cost.

`python -m benchmarks.study run --model demo --record benchmarks/study/demo.jsonl` answers every cell (method, budget, calibration
seed) that the record lacks, the most important ones first, and appends it; stop it and run it again as you like.
`python -m benchmarks.study report benchmarks/study/*.jsonl --plot study` prints tables with paired 95 % intervals and draws them.

Right is who gives exactly the expected answer. Plans are asked teacher-forced, which decides alike: greedy decoding gives the
expected answer if and only if each of its tokens is the likeliest one after those before.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.evidence import MODELS, folder
from benchmarks.evidence.sets import samples as questions_of
from benchmarks.study_ablations import ABLATIONS, priced_searches, searches
from benchmarks.study_report import report
from converters.baselines.forward import generate, generate_each
from converters.baselines.pictures import refusals
from converters.baselines.schedule import SCHEDULES, schedule
from converters.baselines.smaller import Smaller
from converters.calibration.statistics import Statistics, calibrate
from converters.errors import YopoError
from converters.families import converted_family, family_of
from converters.loading import Dtype, load, locate
from converters.planning.compensation import LinearCompensation
from converters.planning.cost import cost
from converters.planning.fitting import fit_compensations
from converters.planning.frontier import Frontier
from converters.planning.measure.answers import Answered, language_model_pass
from converters.planning.measure.trials import Trials
from converters.planning.recipes import RECIPES, make_plan
from converters.planning.search.search import Effort, effort_of, search
from converters.runtime.plan import Plan, Sizes, dense_plan

BATCH = 16
MEMORY = 6 * 10**9
OWN_TOKENS = 40
REFITTED = ": refitted"  # after a recipe's name
BUDGETS = (0.12, 0.06, 0.25, 0.04, 0.5, 0.03)
RECORDED = tuple[str, float | None, int | None]  # method, budget, seed


@dataclass(frozen=True)
class Setting:
    """What is studied: a model on a question set, `questions` unseen ones, planned on `samples` others, of this set or `planned_on`."""

    model: str
    questions_from: str
    questions: int
    samples: int
    budgets: tuple[float, ...]
    record: Path
    planned_on: str = ""
    effort: str = "thorough"

    @property
    def place(self) -> str:
        """The model as `locate` takes it."""
        return str(folder(self.model)) if self.model in MODELS else self.model

    @property
    def facts(self) -> dict[str, Any]:
        """What a line of the record says of it. A folder's name is that of the model in it."""
        found = {
            "model": Path(self.model).name,
            "questions_from": self.questions_from,
            "questions": self.questions,
            "samples": self.samples,
        }
        return found | ({"planned_on": self.planned_on} if self.planned_on else {})

    def search_effort(self, layers: int) -> Effort:
        """How much a search may measure for all budgets."""
        return effort_of(self.effort, layers, len(self.budgets))

    def frontier_file(self, variant: str, seed: int) -> Path:
        """Where a search's result is kept, beside the record."""
        name = f"{Path(self.model).name} {self.planned_on or self.questions_from} {self.samples} {variant} {seed}"
        return self.record.parent / "frontiers" / f"{name.replace(':', '').replace(',', '').replace(' ', '-')}.json"


class Subject:
    """A loaded model with its questions; everything is made when it is first needed, and once."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        loaded = load(locate(setting.place).path, "cpu", Dtype.FLOAT32)
        self.model, self.processor = loaded.model, loaded.processor
        self._statistics: dict[int, Statistics] = {}

    def batches(self, count: int, seed: int, split: str, answers: bool = False) -> Iterator[tuple[Any, list[str]]]:
        """Left-padded processor outputs of questions, with their answers appended where asked for, and the expected answers."""
        setting = self.setting
        asked = setting.planned_on if split == "calibration" and setting.planned_on else setting.questions_from
        found = list(questions_of(asked, count, seed, split))
        for start in range(0, count, BATCH):
            part = found[start : start + BATCH]
            texts = [self.chat(one.question, one.answer if answers else None) for one in part]
            inputs = self.processor(text=texts, images=[one.picture() for one in part], return_tensors="pt", padding=True)
            yield inputs, [one.answer or "" for one in part]

    def questions(self, samples: int, seed: int) -> Iterator[Any]:
        """What plans are calibrated on: left-padded processor outputs of questions."""
        return (inputs for inputs, _ in self.batches(samples, seed, "calibration"))

    def chat(self, question: str, answer: str | None = None) -> str:
        turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return str(self.processor.apply_chat_template(turns, add_generation_prompt=answer is None))

    @cached_property
    def exam(self) -> tuple[list[Any], list[list[str]]]:
        """The unseen questions' inputs and answers by batch; where the set has none, the dense model's own, as far as OWN_TOKENS go."""
        pairs = list(self.batches(self.setting.questions, 0, "eval"))
        return [inputs for inputs, _ in pairs], [expected if any(expected) else self._own(inputs) for inputs, expected in pairs]

    @torch.inference_mode()
    def _own(self, inputs: Any) -> list[str]:
        produced = self.model.generate(**inputs, max_new_tokens=OWN_TOKENS, do_sample=False)
        return list(self.processor.batch_decode(produced[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    @cached_property
    def taught(self) -> tuple[Trials, list[torch.Tensor]]:
        """Trials of the unseen questions with the expected answers, whose tokens come beside it."""
        pairs = [taught(self.model, self.processor, *pair) for pair in zip(*self.exam, strict=True)]
        return Trials(self.model, (one for one, _ in pairs), self.dense, memory_bytes=MEMORY), [tokens for _, tokens in pairs]

    @cached_property
    def sizes(self) -> Sizes:
        config = self.model.config.to_dict()
        return family_of(config).sizes(config)

    @property
    def dense(self) -> Plan:
        return dense_plan(self.sizes, self.statistics(0).grids)

    def statistics(self, seed: int) -> Statistics:
        if seed not in self._statistics:
            asked = (inputs for inputs, _ in self.batches(self.setting.samples, seed, "calibration", answers=True))
            self._statistics[seed] = calibrate(self.model, asked, fingerprint=self.setting.model)
        return self._statistics[seed]

    def frontier(self, name: str, seed: int, effort: Effort, samples: int) -> Frontier:
        """The search of a variant for all budgets: read where it was made before, gone on with where it was interrupted."""
        file = self.setting.frontier_file(name, seed)
        if file.exists():
            return Frontier.load(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        state = file.with_suffix(".search")
        asked = self.questions(samples, seed)
        statistics, budgets = self.statistics(seed), self.setting.budgets
        source = self.setting.planned_on or self.setting.questions_from
        found = search(
            self.model, asked, statistics, budgets, seed=seed, questions_from=source, effort=effort, grids=self.dense.grids, state=state
        )  # fmt: skip
        found.save(file)
        state.unlink(missing_ok=True)
        return found

    def refits(self, plan: Plan, seed: int, samples: int) -> dict[int, LinearCompensation]:
        """The refits of a plan, on the samples that it was planned on."""
        return fit_compensations(self.model, self.questions(samples, seed), plan)

    @torch.inference_mode()
    def plan_right(self, plan: Plan, refits: Mapping[int, LinearCompensation] | None = None) -> list[bool]:
        """Question by question, whether the plan answers as expected."""
        trials, expected = self.taught
        right: list[bool] = []
        for (batch, pruned, _), tokens in zip(trials.logits(plan, refits), expected, strict=True):
            right += [bool(answer.all()) for answer in (pruned.argmax(-1) == tokens).split(batch.lengths)]
        return right

    def pruner_right(self, method: str, budget: float, seed: int) -> tuple[list[bool], float, str]:
        """The same for a token pruner, the share of FLOPs that it reaches, and its note."""
        for _, reason in refusals(self.model, (method,)):
            raise YopoError(reason)
        grids = self.dense.grids
        made = schedule(method, self.sizes, grids, budget)
        if method == "downsample" and (smaller := Smaller.of(self.processor, self.sizes, grids[0], budget)):
            return self._smaller_right(smaller), budget, smaller.note
        right: list[bool] = []
        for inputs, expected in zip(*self.exam, strict=True):
            produced = generate_each(
                self.model, inputs, lambda grids: schedule(method, self.sizes, grids, budget), self._longest(expected), seed
            )
            right += self._equal(produced, expected)
        return right, made.share, made.note

    def _smaller_right(self, smaller: Smaller) -> list[bool]:
        right: list[bool] = []
        for one in questions_of(self.setting.questions_from, self.setting.questions, 0, "eval"):
            picture, expected = one.picture(), one.answer or ""
            encode = partial(self.processor, text=[self.chat(one.question)], images=[picture], return_tensors="pt")
            inputs, made = smaller.encoded([(picture.height, picture.width)], encode)
            right += self._equal(generate(self.model, inputs, made, self._longest([expected])), [expected])
        return right

    def _longest(self, expected: list[str]) -> int:
        """Tokens that tell whether any of these answers was given: one more than the longest has."""
        return 1 + max(len(self.processor.tokenizer(one, add_special_tokens=False).input_ids) for one in expected)

    def _equal(self, produced: Any, expected: list[str]) -> list[bool]:
        answers = self.processor.batch_decode(list(produced), skip_special_tokens=True)
        return [answer.strip() == one for answer, one in zip(answers, expected, strict=True)]


def continued(model: Any, processor: Any, batch: Any, expected: list[str]) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The batch with the expected answers appended: the model's inputs, which rows `[batch, length]` predict the answers' tokens, and
    these in order."""
    tokenizer = processor.tokenizer
    tokens = [[*tokenizer(answer, add_special_tokens=False).input_ids, _end(model)] for answer in expected]
    width = max(map(len, tokens))
    new = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in tokens])
    present = torch.tensor([[place < len(row) for place in range(width)] for row in tokens])
    whole = torch.cat([batch["input_ids"], new], 1)
    mask = torch.cat([batch["attention_mask"].bool(), present], 1)
    longer = {name: torch.nn.functional.pad(value, (0, width)) for name, value in batch.items() if value.shape == batch["input_ids"].shape}
    predicts = torch.zeros_like(mask)
    predicts[:, batch["input_ids"].shape[1] - 1 : -1] = present
    return {**batch, **longer, "input_ids": whole, "attention_mask": mask.long()}, predicts, new[present]


def taught(model: Any, processor: Any, batch: Any, expected: list[str]) -> tuple[Answered, torch.Tensor]:
    """The batch with the expected answers appended, as a dense model sees it, and their tokens in order."""
    inputs, predicts, tokens = continued(model, processor, batch, expected)
    with torch.inference_mode():
        rows, seen = language_model_pass(model, inputs)
    mask = inputs["attention_mask"].bool()
    visual = mask & (inputs["input_ids"] == _image_token(model))
    return Answered(seen["inputs_embeds"], seen.get("position_ids"), mask, visual, predicts, rows[predicts]), tokens


def _end(model: Any) -> int:
    end = model.generation_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)


def _image_token(model: Any) -> int:
    config = model.config.to_dict()
    return int((converted_family(config) or family_of(config)).image_token(config))


def cells(setting: Setting, methods: Iterable[str], seeds: Iterable[int]) -> Iterator[RECORDED]:
    """All cells: one seed after the other; token pruners once, for nothing in them is calibrated."""
    yield "dense", None, None
    methods = list(methods)
    for seed in seeds:
        for budget in setting.budgets:
            for method in methods:
                if method not in SCHEDULES or method == "random":
                    yield method, budget, seed
                elif seed == min(seeds):
                    yield method, budget, None


def answer(subject: Subject, method: str, budget: float | None, seed: int | None) -> dict[str, Any]:
    """One cell's record. Raises YopoError where the method cannot meet the budget."""
    if budget is None:
        return {"right": subject.plan_right(subject.dense), "reached": 1.0}
    if method in SCHEDULES:
        right, reached, note = subject.pruner_right(method, budget, seed or 0)
        return {"right": right, "reached": reached, "note": note}
    assert seed is not None
    setting, layers = subject.setting, subject.sizes.num_hidden_layers
    variants = searches(setting.search_effort(layers), setting.samples)
    variants |= priced_searches(effort_of("usual", layers, len(setting.budgets)), setting.samples)
    if method in variants:
        effort, samples = variants[method]
        found = subject.frontier(method, seed, effort, samples)
        point = found.at(budget)
        refits = subject.refits(point.plan, seed, samples) if found.compensated else None
        facts = {"logit_drift": point.logit_drift, "origin": point.origin, "forwards": found.forwards, "effort": setting.effort}
        return {"right": subject.plan_right(point.plan, refits), "reached": point.share, **facts}
    if method in ABLATIONS:
        ablation, questions = ABLATIONS[method], partial(subject.questions, subject.setting.samples, seed)
        plan = ablation.plan(subject.model, questions, subject.statistics(seed), subject.sizes, subject.dense.grids, budget)
        assert subject.taught  # the dense model's side, before anything is different
        with ablation.during(subject.model, plan):
            return {"right": subject.plan_right(plan), "reached": cost(plan).share}
    method, refit, _ = method.partition(REFITTED)
    plan = make_plan(method, subject.statistics(seed), subject.sizes, subject.dense.grids, budget)
    refits = subject.refits(plan, seed, subject.setting.samples) if refit else None
    return {"right": subject.plan_right(plan, refits), "reached": cost(plan).share}


def known(record: Path, setting: Setting) -> set[RECORDED]:
    """The cells that a record has of this setting."""
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return {
        (line["method"], line["budget"], line["seed"])
        for line in lines
        if line.get("planned_on", "") == setting.planned_on and all(line[name] == value for name, value in setting.facts.items())
    }


def run(options: argparse.Namespace) -> None:
    """Answer what the record lacks."""
    setting = Setting(
        options.model, options.set, options.questions, options.samples, tuple(map(float, options.budgets.split(","))), options.record,
        options.planned_on, options.effort,
    )  # fmt: skip
    done = known(options.record, setting)
    methods, seeds = re.split(r",(?! )", options.methods), tuple(map(int, options.seeds.split(",")))  # names may have a comma and a space
    left = [cell for cell in cells(setting, methods, seeds) if cell not in done]
    subject = Subject(setting)
    for cell in left:
        began = time.process_time()
        try:
            found = answer(subject, *cell)
        except YopoError as error:
            found = {"note": error.message}
        note(setting, cell, found, time.process_time() - began)


def note(setting: Setting, cell: RECORDED, found: dict[str, Any], cpu_seconds: float) -> None:
    """Append a cell's line to the record: what was found, with the outcomes by question as `right` unless there are none."""
    method, budget, seed = cell
    right = found.get("right")
    line = {**setting.facts, "method": method, "budget": budget, "seed": seed}
    line |= {"accuracy": None} if right is None else {"accuracy": sum(right) / len(right), "right": packed(right)}
    line |= {name: value for name, value in found.items() if name != "right"}
    line |= {"cpu_seconds": round(cpu_seconds, 1), "date": str(date.today())}
    line |= {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    setting.record.parent.mkdir(parents=True, exist_ok=True)
    with setting.record.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(method, budget, seed, line["accuracy"], file=sys.stderr, flush=True)


def packed(right: Iterable[bool]) -> str:
    """Outcomes as a hexadecimal number, the first question in the highest bit."""
    bits = "".join(str(int(one)) for one in right)
    return f"{int('1' + bits, 2):x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    cell = commands.add_parser("run")
    cell.add_argument("--model", default="demo", help="demo, the name of an evidence model, or a folder")
    cell.add_argument("--set", default="demo", help="the question set: demo, harder, sizes, english, easy-vqa")
    cell.add_argument("--planned-on", default="", help="the set that plans are made on, if it is another")
    cell.add_argument("--effort", default="thorough", help="of searches: quick, usual, thorough, or forward passes")
    cell.add_argument("--record", type=Path, required=True)
    cell.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    cell.add_argument("--methods", default=",".join(("auto", *RECIPES, *SCHEDULES)))
    cell.add_argument("--seeds", default="0,1,2")
    cell.add_argument("--samples", type=int, default=96)
    cell.add_argument("--questions", type=int, default=2000)
    cell.set_defaults(command=run)
    shown = commands.add_parser("report")
    shown.add_argument("records", type=Path, nargs="+")
    shown.add_argument("--plot", type=Path, help="draw NAME.png and NAME.svg")
    shown.set_defaults(command=lambda options: report(options.records, options.plot))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):
        options.command(options)


if __name__ == "__main__":
    main()
