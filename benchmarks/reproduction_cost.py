"""What `reproduce_llava.sh` will fetch and ask, told before it starts: gigabytes by the Hub's own account, and answers."""

import argparse
import re

from huggingface_hub import snapshot_download

from converters.evaluation.benchmarks import is_benchmark, names_of
from converters.evaluation.tasks import task
from converters.families.names import SHORT_NAMES

QUESTIONS = {
    "gqa": 12578, "vqav2": 214354, "pope": 9000, "mmbench": 4329, "mmbench-cn": 4329, "scienceqa": 2017, "textvqa": 5000,
    "textvqa-ocr": 5000, "mme": 2374, "mmmu": 900, "chartqa": 2500, "docvqa": 5349, "ocrbench": 1000, "ai2d": 3088, "realworldqa": 765,
    "mmstar": 1500, "seed": 17990, "demo": 500,
}  # fmt: skip
RATES = (2, 10, 50)  # answers a second


def bytes_of(repositories: tuple[str, ...], kind: str, patterns: list[str]) -> int | None:
    """Bytes that are yet to come from the first of the repositories that there is; None where the Hub does not say."""
    for repository in repositories:
        try:
            files = snapshot_download(repository, repo_type=kind, allow_patterns=patterns, dry_run=True)
        except Exception:  # offline, gone, refused: this only tells, and what fetches will say why it cannot
            continue
        return sum(file.file_size for file in files if file.will_download)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("tasks")
    parser.add_argument("sweep_tasks")
    parser.add_argument("against")
    parser.add_argument("--samples", type=int)
    options = parser.parse_args()
    repository = SHORT_NAMES.get(options.model, options.model)
    if "/" in repository:
        _say(repository, bytes_of((repository.partition("@")[0],), "model", ["*.json", "*.safetensors", "*.model"]))
    for name in dict.fromkeys([*names_of(options.tasks), *names_of(options.sweep_tasks)]):
        if is_benchmark(name) and "=" not in name:
            source = task(re.split("@", name)[0]).source
            patterns = [source.files, *([source.pictures[0]] if source.pictures else [])]
            _say(name, bytes_of(source.repositories, "dataset", patterns))
    sides = 3 + len(options.against.split(","))
    answers = 2 * sides * _count(options.tasks, options.samples) + (4 * 3 + 3) * _count(options.sweep_tasks, options.samples)
    hours = ", ".join(f"{answers / rate / 3600:.1f} hours at {rate} a second" for rate in RATES)
    print(f"At most {answers:,} answers: {hours}; the search and the conversions come before.")


def _say(what: str, size: int | None) -> None:
    print(f"{what}: " + ("the Hub does not say how much is to be fetched" if size is None else f"{size / 1e9:.2f} GB to fetch"))


def _count(tasks: str, samples: int | None) -> int:
    counts = [QUESTIONS.get(re.split("[@=]", name)[0], 0) for name in names_of(tasks)]
    return sum(count if samples is None else min(count, samples) for count in counts)


if __name__ == "__main__":
    main()
