"""Quantised weights on top of pruning: accuracy on unseen questions, seconds of a prefill and bytes, dense and pruned.

`python -m benchmarks.quantised run --model demo --set demo` answers every cell (side, weights) that the record lacks: the dense model and
its plan of the study at a budget, loaded by transformers with each way of quantising. Stop it and run it again as you like.
`python -m benchmarks.quantised report` prints the tables, with paired 95 % intervals. `python -m benchmarks.quantised time OUT` times the
language model of a converted checkpoint on random rows, with its plan and without, in turns. torchao and bitsandbytes are needed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from benchmarks.evidence import MODELS, folder
from benchmarks.heal import model_right
from benchmarks.study import RECORDED, Setting, Subject, known, note
from benchmarks.study_report import OURS, Cells, drawn, interval, read
from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.reader import open_checkpoint
from converters.checkpoint.source import Source
from converters.loading import locate
from converters.planning.search.search import usual_effort
from converters.runtime.registration import register

RECORD = Path(__file__).parent / "study" / "quantised.jsonl"
ROUNDS, FEW_ROUNDS = 15, 3


def _torchao(config: Callable[[Any], Any]) -> Callable[[], Any]:
    def made() -> Any:
        import torchao.quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(config(torchao.quantization))

    return made


def _bitsandbytes(**options: Any) -> Callable[[], Any]:
    def made() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options)

    return made


WEIGHTS: dict[str, Callable[[], Any]] = {
    "16 bits": lambda: None,
    "int8": _torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "int8, rows too": _torchao(lambda ao: ao.Int8DynamicActivationInt8WeightConfig()),
    "int4 in groups of 32": _torchao(lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.granularity.PerGroup(32))),
    "bitsandbytes 8 bits": _bitsandbytes(load_in_8bit=True),
    "bitsandbytes nf4": _bitsandbytes(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # on some processors it takes multiples of 64 inputs alone, and these models have 352 neurons
        llm_int8_skip_modules=["lm_head", "down_proj", "model.vision_tower", "model.visual", "model.multi_modal_projector"],
    ),
}


def name_of(side: str, weights: str) -> str:
    """A cell's method in the record."""
    return side if weights == "16 bits" else f"{side}: {weights}"


def pruned(subject: Subject, budget: float, seed: int, place: Path) -> Path:
    """The study's plan of a budget, converted with its refits."""
    setting = subject.setting
    out = place / f"{Path(setting.model).name}-{setting.questions_from}-{seed}-{budget:g}"
    if out.exists():
        return out
    found = subject.frontier(OURS, seed, usual_effort(subject.sizes.num_hidden_layers), setting.samples)
    plan = found.at(budget).plan
    refits = subject.refits(plan, seed, setting.samples) if found.compensated else {}
    provenance = Provenance(Source(setting.model, base_of(setting)), "quantised", budget, OURS, refit_samples=setting.samples)
    out.parent.mkdir(parents=True, exist_ok=True)
    return convert(open_checkpoint(base_of(setting)), plan, out, provenance, refits=refits)


def base_of(setting: Setting) -> Path:
    return locate(str(folder(setting.model)) if setting.model in MODELS else setting.model).path


def answered(path: Path, weights: str, subject: Subject) -> dict[str, Any]:
    """What a model with such weights answers, how long a prefill of one question takes, and what its language model's layers weigh."""
    register()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, quantization_config=WEIGHTS[weights]()).eval()
    if hasattr(model, "path_report") and "called whole" in model.path_report():
        raise RuntimeError("visual work is not skipped")
    right = model_right(model, subject.processor, subject.exam)
    one, _ = next(subject.batches(1, 0, "eval"))
    return {"right": right, "milliseconds": milliseconds(model, one), "bytes": layer_bytes(model)}


@torch.inference_mode()
def milliseconds(model: Any, inputs: Any) -> float:
    """The median prefill."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        model(**inputs, use_cache=True, logits_to_keep=1)
        seconds.append(time.perf_counter() - began)
    return round(1000 * median(seconds[3:]), 2)


def layer_bytes(model: Any) -> int:
    """Bytes of the weights of the decoder layers; unquantised ones count as the 16 bits that they are stored in."""
    total = 0
    for parameter in model.model.language_model.layers.parameters():
        state = getattr(parameter, "quant_state", None)
        parts = [getattr(parameter, name) for name in parameter.__tensor_flatten__()[0]] if hasattr(parameter, "qdata") else [parameter]
        total += sum(part.numel() * (2 if part.is_floating_point() and len(parts) == 1 else part.itemsize) for part in parts)
        total += 0 if state is None else state.absmax.nbytes
    return total


def cells(budget: float, seed: int) -> Iterator[tuple[str, str, RECORDED]]:
    """Side, weights and the record's name of it."""
    for weights in WEIGHTS:
        yield "dense", weights, (name_of("dense", weights), None, None)
        yield OURS, weights, (name_of(OURS, weights), budget, seed)


def run(options: argparse.Namespace) -> None:
    """Answer what the record lacks."""
    setting = Setting(options.model, options.set, options.questions, options.samples, (options.budget,), options.record)
    subject, done = Subject(setting), known(options.record, setting)
    for side, weights, cell in cells(options.budget, options.seed):
        if cell in done:
            continue
        path = base_of(setting) if side == "dense" else pruned(subject, options.budget, options.seed, options.scratch)
        began = time.process_time()
        try:
            found = answered(path, weights, subject) | {"reached": 1.0 if side == "dense" else options.budget}
        except (RuntimeError, ValueError, AssertionError, ImportError) as error:
            print(f"{side}, {weights}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            found = {"note": f"{type(error).__name__}: {error}".splitlines()[0]}
        note(setting, cell, found, time.process_time() - began)


def table(cells: Cells, facts: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: by weights, what both sides keep of the dense model's accuracy, what quantising cost the pruned one, time and bytes."""
    model, questions_from, questions, _ = cells.group
    (budget,) = cells.budgets
    lines = [f"## {model} on `{questions_from}` at {budget:g}", ""]
    lines += [f"Dense, 16 bits: {cells.outcomes['dense', None].mean():.4f} of {questions} unseen questions.", ""]
    lines += ["| weights | dense keeps, % | pruned keeps, % | pruned against 16 bits, points | dense, ms | pruned, ms | layers, MB |"]
    lines += ["|---" * 7 + "|"]
    for weights in WEIGHTS:
        dense, ours = name_of("dense", weights), name_of(OURS, weights)
        if (ours, budget) not in cells.outcomes or (dense, None) not in cells.outcomes:
            why = (facts.get(ours) or facts.get(dense) or {}).get("note", "not asked")
            lines.append(f"| {weights} | {why} | | | | | |")
            continue
        difference = cells.outcomes[ours, budget] - cells.outcomes[OURS, budget]
        cost = interval(difference.mean(), drawn(len(difference)) @ difference / len(difference))
        kept = [
            "{:.1f} ({:.1f} to {:.1f})".format(*(100 * share for share in cells.retention(*one))) for one in ((dense, None), (ours, budget))
        ]
        times = [f"{facts[one]['milliseconds']:.1f}" for one in (dense, ours)]
        points = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * share for share in cost))
        lines.append(f"| {weights} | {' | '.join(kept)} | {points} | {' | '.join(times)} | {facts[ours]['bytes'] / 1e6:.2f} |")
    return [*lines, ""]


def report(options: argparse.Namespace) -> None:
    lines = [json.loads(line) for line in options.record.read_text().splitlines()]
    for found in read([options.record]):
        facts = {line["method"]: line for line in lines if (line["model"], line["questions_from"], line["questions"]) == found.group[:3]}
        print("\n".join(table(found, facts)))


@torch.inference_mode()
def timed(options: argparse.Namespace) -> None:
    """A table of seconds of the language model's prefill: by weights, dense and pruned."""
    register()
    print("| weights | dense, s | pruned, s | share |\n|---|---|---|---|")
    for weights, config in WEIGHTS.items():
        try:
            model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.bfloat16, quantization_config=config()).eval()
            seconds = prefills(model, options.text)
        except (RuntimeError, ValueError, AssertionError, ImportError) as error:
            print(f"| {weights} | {type(error).__name__}: {error} | | |")
            continue
        dense, ours = (median(seconds[side]) for side in ("dense", "pruned"))
        print(f"| {weights} | {dense:.3f} | {ours:.3f} | {ours / dense:.2f} |", flush=True)


def prefills(model: Any, text: int) -> dict[str, list[float]]:
    """Seconds of prefills of one picture and `text` tokens, in turns, after one of each."""
    language_model, grid = model.model.language_model, model.model.language_model.plan.grids[0]
    visual = torch.arange(grid.tokens + text)[None] < grid.tokens
    rows = torch.randn(1, grid.tokens + text, language_model.config.hidden_size, dtype=torch.bfloat16)
    seconds: dict[str, list[float]] = {"dense": [], "pruned": []}
    for number in range(1 + FEW_ROUNDS):
        for side, taken in seconds.items():
            with model.dense() if side == "dense" else nullcontext():
                began = time.perf_counter()
                given = {} if side == "dense" else {"visual_mask": visual, "images": model.model.images}
                language_model(inputs_embeds=rows.clone(), use_cache=True, **given)
                taken += [time.perf_counter() - began] if number else []
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    cell = commands.add_parser("run")
    cell.add_argument("--model", default="demo", help="demo, or the name of an evidence model")
    cell.add_argument("--set", default="demo", help="the question set: demo, harder, sizes")
    cell.add_argument("--budget", type=float, default=0.12)
    cell.add_argument("--seed", type=int, default=0, help="of the calibration that the plan was searched on")
    cell.add_argument("--samples", type=int, default=128, help="questions that the plan was searched on")
    cell.add_argument("--questions", type=int, default=500)
    cell.add_argument("--scratch", type=Path, default=Path("build/quantised"))
    cell.set_defaults(command=run)
    shown = commands.add_parser("report")
    shown.set_defaults(command=report)
    wide = commands.add_parser("time")
    wide.add_argument("folder", type=Path, help="a converted checkpoint, of a family whose pictures have one grid")
    wide.add_argument("--text", type=int, default=64, help="tokens of text")
    wide.set_defaults(command=timed)
    for command in (cell, shown):
        command.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.command(options)


if __name__ == "__main__":
    main()
