"""What `reproduce_llava.sh` will fetch and ask, told before it starts: gigabytes by the Hub's own account, and hours of a named card.

Hours are FLOPs over 40 % of the card's peak in 16 bits without sparsity: prefills of every answer of every side (the language model's, and
the vision tower's where its config says its sizes), and the search's passes. The few tokens of an answer and the loading come on top.
"""

import argparse
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from converters.bench.models import published_config
from converters.evaluation.benchmarks import is_benchmark, names_of
from converters.evaluation.tasks import task
from converters.families import family_of
from converters.families.names import SHORT_NAMES
from converters.loading import locate_config
from converters.planning.cost import dense_flops
from converters.planning.search.search import usual_effort

QUESTIONS = {
    "gqa": 12578, "vqav2": 214354, "pope": 9000, "mmbench": 4329, "mmbench-cn": 4329, "scienceqa": 2017, "textvqa": 5000,
    "textvqa-ocr": 5000, "mme": 2374, "mmmu": 900, "chartqa": 2500, "docvqa": 5349, "ocrbench": 1000, "ai2d": 3088, "realworldqa": 765,
    "mmstar": 1500, "seed": 17990, "demo": 500,
}  # fmt: skip
CARDS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "L4": 121e12}
"""FLOP/s in bfloat16, dense, of the makers' data sheets (the RTX 4090's with sums in 32 bits)."""
EFFICIENCY = 0.4
TEXT_TOKENS = 100  # a question with Vicuna's system prompt and instructions
TABLE, SWEEP = (0.25, 0.12), (0.75, 0.5, 0.37, 0.19)  # budgets of steps 2 and 3


def bytes_of(repositories: tuple[str, ...], kind: str, patterns: list[str]) -> int | None:
    """Bytes that are yet to come from the first of the repositories that there is; None where the Hub does not say."""
    for repository in repositories:
        try:
            files = snapshot_download(repository, repo_type=kind, allow_patterns=patterns, dry_run=True)
        except Exception:  # offline, gone, refused: this only tells, and what fetches will say why it cannot
            continue
        return sum(file.file_size for file in files if file.will_download)
    return None


def fetched(options: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """The model and the data sets, with what is yet to be fetched of each."""
    repository = SHORT_NAMES.get(options.model, options.model)
    if "/" in repository and not Path(repository).exists():
        yield repository, bytes_of((repository.partition("@")[0],), "model", ["*.json", "*.safetensors", "*.model"])
    for name in dict.fromkeys([*names_of(options.tasks), *names_of(options.sweep_tasks)]):
        if is_benchmark(name) and "=" not in name:
            source = task(re.split("@", name)[0]).source
            patterns = [source.files, *([source.pictures[0]] if source.pictures else [])]
            yield name, bytes_of(source.repositories, "dataset", patterns)


def work(options: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs of each step."""
    family = family_of(config)
    sizes, visual = family.sizes(config), family.grid(config).tokens
    dense, text = dense_flops(sizes, visual + TEXT_TOKENS), dense_flops(sizes, TEXT_TOKENS)
    tower = _tower_flops(config.get("vision_config") or {})

    def answers(shares: Iterable[float], questions: int) -> float:
        return questions * sum(tower + text + share * (dense - text) for share in shares)

    others = len(options.against.split(",")) + 1  # and the paper's recipe
    table, sweep = _count(options.tasks, options.samples), _count(options.sweep_tasks, options.samples)
    passes = usual_effort(sizes.num_hidden_layers).forwards if options.search else 1
    return {
        "plans": passes * options.plan_samples * (tower + dense),
        "table": sum(answers((1, *[budget] * (others + 1)), table) for budget in TABLE),
        "sweep": sum(answers((1, budget, budget), sweep) for budget in SWEEP),
        "heads of text": answers((1, 1, 1), sweep),
    }


def _tower_flops(vision: Mapping[str, Any]) -> float:
    """Of one picture through a plain transformer; 0 where the config does not say its sizes as plain numbers."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
    width, inner, layers, image, patch = (vision.get(name) for name in names)
    if not all(isinstance(one, int) for one in (width, inner, layers, image, patch)):
        return 0.0
    tokens = (image // patch) ** 2 + 1  # type: ignore[operator]
    return 2.0 * layers * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * inner)  # type: ignore[operator]


def _count(tasks: str, samples: int | None) -> int:
    counts = [QUESTIONS.get(re.split("[@=]", name)[0], 0) for name in names_of(tasks)]
    return sum(count if samples is None else min(count, samples) for count in counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("tasks")
    parser.add_argument("sweep_tasks")
    parser.add_argument("against")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--plan-samples", type=int, default=128)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--card", default="H100", choices=CARDS)
    options = parser.parse_args()
    sizes = dict(fetched(options))
    for name, size in sizes.items():
        print(f"{name}: " + ("the Hub does not say how much is to be fetched" if size is None else f"{size / 1e9:.2f} GB to fetch"))
    told = sum(size for size in sizes.values() if size is not None)
    unknown = sum(size is None for size in sizes.values())
    cache = next(place for place in (Path(constants.HF_HUB_CACHE), *Path(constants.HF_HUB_CACHE).parents) if place.exists())
    free = shutil.disk_usage(cache).free
    more = f", and {unknown} of which the Hub does not say" if unknown else ""
    print(f"To fetch: {told / 1e9:.1f} GB{more}; {free / 1e9:.0f} GB are free in {cache}.")
    flops = work(options, published_config(options.model) or locate_config(options.model)[1])
    hours = {step: count / (EFFICIENCY * CARDS[options.card]) / 3600 for step, count in flops.items()}
    steps = ", ".join(f"{step} {_hours(one)}" for step, one in hours.items())
    print(f"At 40 % of the peak of one {options.card} ({CARDS[options.card] / 1e12:g} TFLOP/s): {_hours(sum(hours.values()))} ({steps}).")


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 0.1 else f"{60 * hours:.2g} min"


if __name__ == "__main__":
    main()
