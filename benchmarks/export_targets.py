"""The demo in onnxruntime-genai and in transformers.js: `python benchmarks/export_targets.py FOLDER`.

Sets up both runtimes in FOLDER (pip and npm), prunes and exports the demo for each, and has all of them answer the same questions
about the same pictures: greedy, by the runtimes' own generators. Exits with 1 if an answer is not the PyTorch runtime's.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from converters.data.demo.shapes import samples
from converters.data.prompts import encode, prompt
from converters.evaluation.answering import generate
from converters.loading import Dtype, load

GENAI = ("onnxruntime-genai==0.18.0", "transformers==5.23.0", "pillow", "jinja2")
TRANSFORMERS_JS = "@huggingface/transformers@4.3.1"
TARGETS = ("genai", "transformers-js")
BUDGET, TOKENS = 0.12, 8
HERE = Path(__file__).parent


def call(*words: object, **options: Any) -> str:
    """What a command prints. Raises CalledProcessError if it fails."""
    print("$", *words, file=sys.stderr, flush=True)
    return subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def set_up(folder: Path) -> None:
    """A virtual environment and an npm project, made once."""
    if not (folder / "venv").exists():
        call(sys.executable, "-m", "venv", folder / "venv")
        call(folder / "venv/bin/pip", "install", "-q", *GENAI)
    if not (folder / "node_modules").exists():
        # Install scripts would fetch libraries for GPUs; those for the CPU are in the package.
        call("npm", "install", "--ignore-scripts", "--silent", TRANSFORMERS_JS, cwd=folder)
        (folder / "ask.mjs").write_bytes((HERE / "ask_transformers_js.mjs").read_bytes())


def ask(target: str, package: Path, questions: Path, folder: Path) -> list[str]:
    """A runtime's answers."""
    command = [folder / "venv/bin/python", HERE / "ask_genai.py"] if target == "genai" else ["node", folder / "ask.mjs"]
    answers: list[str] = json.loads(call(*command, package.resolve(), questions.resolve()).splitlines()[-1])
    return answers


def write_questions(count: int, folder: Path) -> Path:
    asked = []
    for number, sample in enumerate(samples(count, 0, "eval")):
        sample.image.save(folder / f"{number}.png")
        asked.append({"image": str((folder / f"{number}.png").resolve()), "question": sample.question, "tokens": TOKENS})
    file = folder / "questions.json"
    file.write_text(json.dumps(asked))
    return file


def torch_answers(model: Path, count: int) -> list[str]:
    loaded = load(model, "cpu", Dtype.FLOAT32)
    answers = []
    for sample in samples(count, 0, "eval"):
        answers += generate(loaded, encode(loaded.processor, [prompt(loaded.processor, sample.question, 1)], [sample.image]), TOKENS)
    return answers


def versions(folder: Path) -> dict[str, str]:
    """Of both runtimes and what they run on."""
    listed = json.loads(call(folder / "venv/bin/pip", "list", "--format", "json"))
    found = {one["name"]: one["version"] for one in listed if one["name"].startswith("onnxruntime")}
    for name in ("@huggingface/transformers", "onnxruntime-node"):
        found[name] = json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
    return found | {"node": call("node", "--version").strip()}


def compare(recipe: str, count: int, folder: Path) -> dict[str, Any]:
    """Prune by a recipe, export for both runtimes, ask; counts of answers that are the same, and what the packages report."""
    yopo = (sys.executable, "-m", "yopo_cli")
    pruned = folder / f"demo-{recipe}"
    call(*yopo, "convert", "demo", "--budget", BUDGET, "--recipe", recipe, "-o", pruned, "--force")
    expected, questions = torch_answers(pruned, count), write_questions(count, folder)
    print("question | PyTorch", *TARGETS, sep=" | ")
    answers, facts = {}, {}
    for target in TARGETS:
        package = folder / f"demo-{recipe}-{target}"
        report = json.loads(call(*yopo, "export", pruned, "--target", target, "-o", package, "--force", "--json"))
        facts[target] = {"added_bytes": report["added_bytes"], **report["facts"]["cache_bytes"]}
        answers[target] = ask(target, package, questions, folder)
    for row in zip(json.loads(questions.read_text()), expected, *answers.values(), strict=True):
        print(row[0]["question"], *row[1:], sep=" | ")
    same = {target: sum(one == other for one, other in zip(found, expected, strict=True)) for target, found in answers.items()}
    return {"recipe": recipe, "budget": BUDGET, "questions": count, "same": same, "facts": facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["interlaced", "yopo"])
    parser.add_argument("--questions", type=int, default=20)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.folder.mkdir(parents=True, exist_ok=True)
    set_up(options.folder)
    results = [compare(recipe, options.questions, options.folder) for recipe in options.recipes]
    print(json.dumps({"versions": versions(options.folder), "results": results}))
    sys.exit(any(same < options.questions for result in results for same in result["same"].values()))


if __name__ == "__main__":
    main()
