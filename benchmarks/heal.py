"""Healing: accuracy on unseen questions before and after, for every model of the study and at its own plans.

`python -m benchmarks.heal run --model demo --set demo` answers every cell (budget, calibration seed) that the record lacks and appends
a line for the plan (`auto`) and one for what healing made of it (`healed`; of `--tune language`, `healed: language`); stop it and run it
again as you like. The exam and the frontiers are the study's: a frontier that is not there yet is searched. What is learned from, other
questions of the same set, and what else is expensive is kept in the scratch folder.
`python -m benchmarks.heal report` prints tables with paired 95 % intervals, and draws the frontiers with and without healing.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.sets import samples as questions_of
from benchmarks.study import RECORDED, Setting, Subject, continued, known, note
from benchmarks.study_report import OURS, Cells, draw, read
from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.reader import open_checkpoint
from converters.checkpoint.source import Source
from converters.errors import YopoError
from converters.healing.heal import HealingRequest, Tune, heal_model
from converters.loading import Dtype, load, locate
from converters.progress import unheard

BUDGETS = (0.06, 0.03, 0.12)
NAMES = {"projector": "healed", "language": "healed: language"}
RECORD = Path(__file__).parent / "study" / "heal.jsonl"
UNSEEN = 10_000  # added to a seed of the training split: no model was trained on these pictures


@torch.inference_mode()
def model_right(model: Any, processor: Any, exam: tuple[list[Any], list[list[str]]]) -> list[bool]:
    """Question by question, whether a model, dense or converted, answers as expected."""
    right: list[bool] = []
    for inputs, expected in zip(*exam, strict=True):
        given, predicts, tokens = continued(model, processor, inputs, expected)
        same = model.lm_head(model.model(**given, use_cache=False).last_hidden_state[predicts]).argmax(-1) == tokens
        right += [bool(answer.all()) for answer in same.split(predicts.sum(1).tolist())]
    return right


def lessons(setting: Setting, seed: int, count: int, place: Path) -> Path:
    """A JSONL file of questions to learn from, without answers."""
    file = place / f"lessons-{count}.jsonl"
    if not file.exists():
        (place / "pictures").mkdir(exist_ok=True)
        lines = []
        for index, sample in enumerate(questions_of(setting.questions_from, count, UNSEEN + seed, "train")):
            sample.image.save(place / "pictures" / f"{index}.png")
            lines.append(json.dumps({"image": f"pictures/{index}.png", "question": sample.question}) + "\n")
        file.write_text("".join(lines))
    return file


def healed(subject: Subject, budget: float, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The plan of a budget before and after healing: what `benchmarks.study` records of each."""
    setting = subject.setting
    place = options.scratch / f"{Path(setting.model).name}-{setting.questions_from}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    found = subject.frontier(OURS, seed, setting.search_effort(subject.sizes.num_hidden_layers), setting.samples)
    point = found.at(budget)
    refits = subject.refits(point.plan, seed, setting.samples) if found.compensated else {}
    base = locate(setting.place).path
    before, after = place / f"pruned-{budget:g}", place / f"{options.tune}-{budget:g}"
    provenance = Provenance(Source(setting.model, base), "heal", budget, OURS, refit_samples=setting.samples if refits else None)
    convert(open_checkpoint(base), point.plan, before, provenance, refits=refits, force=True)
    request = HealingRequest(
        lessons(setting, seed, options.lessons, place), options.steps, Tune(options.tune), seed=seed, rate=options.rate,
        answers=place / "answers", device="cpu", dtype=Dtype.FLOAT32, command="benchmarks.heal",
    )  # fmt: skip
    facts = heal_model(before, request, after, force=True, progress=unheard)
    facts = {name: value for name, value in facts.items() if name not in ("data", "command", "seed")}
    for method, out, more in ((OURS, before, {"logit_drift": point.logit_drift}), (NAMES[options.tune], after, {"healing": facts})):
        loaded = load(out, "cpu", Dtype.FLOAT32)
        yield method, {"right": model_right(loaded.model, loaded.processor, subject.exam), "reached": point.share, **more}


def run(options: argparse.Namespace) -> None:
    """Answer what the record lacks."""
    budgets, seeds = tuple(map(float, options.budgets.split(","))), tuple(map(int, options.seeds.split(",")))
    setting = Setting(options.model, options.set, options.questions, options.samples, budgets, options.record, effort=options.effort)
    subject, done = Subject(setting), known(options.record, setting)
    if ("dense", None, None) not in done:
        began = time.process_time()
        right = model_right(subject.model, subject.processor, subject.exam)
        note(setting, ("dense", None, None), {"right": right, "reached": 1.0}, time.process_time() - began)
    for seed in seeds:
        for budget in budgets:
            began = time.process_time()
            cell: RECORDED = (NAMES[options.tune], budget, seed)
            if cell in done:
                continue
            try:
                for method, found in healed(subject, budget, seed, options):
                    note(setting, (method, budget, seed), found, time.process_time() - began)
            except YopoError as error:  # no line: it may be possible tomorrow
                print(f"{error.message} {error.hint}", file=sys.stderr, flush=True)


def table(cells: Cells) -> list[str]:
    """Markdown: the share of the dense accuracy that is kept before and after, and the points gained, with 95 % intervals."""
    model, questions_from, questions, *_ = cells.group
    lines = [
        f"## {model} on `{questions_from}`",
        "",
        f"Dense {cells.outcomes['dense', None].mean():.4f} of {questions} unseen questions.",
        "",
    ]
    lines += ["| | budget | seeds | kept before, % | kept after, % | gained, points |", "|---" * 6 + "|"]
    for method, budget in sorted(cells.outcomes.keys() & {(name, budget) for name in NAMES.values() for budget in cells.budgets}):
        before, after = (cells.retention(one, budget) for one in (OURS, method))
        lead, least, most = cells.lead(method, budget)
        gained = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(0.0 - 100 * points for points in (lead, most, least)))
        shown = " | ".join("{:.1f} ({:.1f} to {:.1f})".format(*(100 * share for share in found)) for found in (before, after))
        lines.append(f"| {method} | {budget:g} | {cells.seeds[method, budget]} | {shown} | {gained} |")
    return [*lines, ""]


def report(options: argparse.Namespace) -> None:
    for cells in read([options.record]):
        print("\n".join(table(cells)))
        if options.plot is not None:
            draw(cells, options.plot.with_name(f"{options.plot.name}-{Path(cells.group[0]).name}-{cells.group[1]}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    cell = commands.add_parser("run")
    cell.add_argument("--model", default="demo", help="demo, or the name of an evidence model")
    cell.add_argument("--set", default="demo", help="the question set: demo, harder, sizes, english")
    cell.add_argument("--scratch", type=Path, default=Path("build/heal"))
    cell.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    cell.add_argument("--seeds", default="0,1,2")
    cell.add_argument("--samples", type=int, default=128, help="questions that the plans are searched on")
    cell.add_argument("--questions", type=int, default=2000)
    cell.add_argument("--effort", default="thorough", help="of searches: quick, usual, thorough, or forward passes")
    cell.add_argument("--steps", type=int, default=345)
    cell.add_argument("--lessons", type=int, default=3000, help="questions to learn from")
    cell.add_argument("--tune", choices=list(NAMES), default="projector")
    cell.add_argument("--rate", type=float, help="the learning rate's peak, if not the default")
    cell.set_defaults(command=run)
    shown = commands.add_parser("report")
    shown.add_argument("--plot", type=Path, help="draw NAME-MODEL-SET.png and .svg")
    shown.set_defaults(command=report)
    for command in (cell, shown):
        command.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.command(options)


if __name__ == "__main__":
    main()
