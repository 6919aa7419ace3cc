"""What a study's records say: accuracy by method and budget with paired 95 % intervals, as Markdown tables and plots."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

OURS = "auto"
RESAMPLES = 2000
LABELS = {
    OURS: "measured search (auto)",
    "interlaced": "interlaced, not compensated",
    "interlaced: refitted": "interlaced",
    "yopo": "the paper's recipe (yopo)",
}
"""What methods are called in plots, where their names alone do not say."""
Group = tuple[str, str, int, int, str]  # model, question set, questions, calibration samples, the set that these are of if another


@dataclass(frozen=True)
class Cells:
    """One model's records on one question set. Outcomes are means over seeds, by question."""

    group: Group
    outcomes: dict[tuple[str, float | None], np.ndarray]
    seeds: dict[tuple[str, float | None], int]
    reached: dict[tuple[str, float | None], float]

    @property
    def budgets(self) -> list[float]:
        return sorted({budget for _, budget in self.outcomes if budget is not None}, reverse=True)

    @property
    def methods(self) -> list[str]:
        names = list(dict.fromkeys(name for name, budget in self.outcomes if budget is not None))
        return sorted(names, key=lambda name: (name != OURS, names.index(name)))

    def retention(self, method: str, budget: float) -> tuple[float, float, float]:
        """Accuracy over the dense one's, and the 95 % interval of questions drawn again."""
        ours, dense = self.outcomes[method, budget], self.outcomes["dense", None]
        again = drawn(len(dense))
        return interval(ours.mean() / dense.mean(), again @ ours / (again @ dense))

    def lead(self, method: str, budget: float) -> tuple[float, float, float]:
        """By how much ours is more accurate on the same questions, and the 95 % interval."""
        difference = self.outcomes[OURS, budget] - self.outcomes[method, budget]
        return interval(difference.mean(), drawn(len(difference)) @ difference / len(difference))


@cache
def drawn(questions: int) -> np.ndarray:
    """How often each question is drawn, [RESAMPLES, questions]; the same for all methods, so that they are paired."""
    return np.random.default_rng(0).multinomial(questions, np.full(questions, 1 / questions), RESAMPLES)


def interval(value: float, values: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(value), float(low), float(high)


def read(files: Iterable[Path]) -> list[Cells]:
    """The records by model and question set; the last one of a cell counts."""
    groups: dict[Group, list[dict[str, Any]]] = defaultdict(list)
    for file in files:
        for line in file.read_text().splitlines():
            cell = json.loads(line)
            groups[cell["model"], cell["questions_from"], cell["questions"], cell["samples"], cell.get("planned_on", "")].append(cell)
    return [_cells(group, found) for group, found in groups.items()]


def _cells(group: Group, found: list[dict[str, Any]]) -> Cells:
    latest = {(cell["method"], cell["budget"], cell["seed"]): cell for cell in found if cell["accuracy"] is not None}
    by_cell: dict[tuple[str, float | None], list[dict[str, Any]]] = defaultdict(list)
    for (method, budget, _), cell in latest.items():
        by_cell[method, budget].append(cell)
    outcomes = {key: np.mean([unpacked(cell["right"]) for cell in cells], 0) for key, cells in by_cell.items()}
    reached = {key: min(cell["reached"] for cell in cells) for key, cells in by_cell.items()}
    return Cells(group, outcomes, {key: len(cells) for key, cells in by_cell.items()}, reached)


def unpacked(text: str) -> np.ndarray:
    """Outcomes 0 and 1 from a hexadecimal number whose highest bit only marks where they begin."""
    return np.array([int(bit) for bit in f"{int(text, 16):b}"[1:]], dtype=float)


def table(cells: Cells) -> list[str]:
    """Markdown: retention in percent with its interval; the lead of ours over the method where the interval has no zero in it."""
    model, questions_from, questions, samples, planned_on = cells.group
    dense = cells.outcomes["dense", None].mean()
    others = f"{samples} of `{planned_on}`" if planned_on else f"{samples} others"
    lines = [f"## {model} on `{questions_from}`", ""]
    lines += [f"Dense {dense:.4f} of {questions} unseen questions; planned on {others}. Share of the dense accuracy kept, in"]
    lines += [
        "percent, with its 95 % interval; in brackets by how many points `auto` is ahead, bold where the paired interval excludes 0.",
        "",
    ]
    lines += ["| method | seeds | " + " | ".join(f"{budget:g}" for budget in cells.budgets) + " |", "|---" * (len(cells.budgets) + 2) + "|"]
    for method in cells.methods:
        seeds = max(cells.seeds.get((method, budget), 0) for budget in cells.budgets)
        lines.append(f"| {method} | {seeds} | " + " | ".join(_entry(cells, method, budget) for budget in cells.budgets) + " |")
    return [*lines, ""]


def _entry(cells: Cells, method: str, budget: float) -> str:
    if (method, budget) not in cells.outcomes:
        return "-"
    value, low, high = (100 * share for share in cells.retention(method, budget))
    text = f"{value:.1f} ({low:.1f} to {high:.1f})"
    if method == OURS or (OURS, budget) not in cells.outcomes:
        return text
    lead, least, most = (100 * share for share in cells.lead(method, budget))
    return f"{text} [{lead:+.1f}]" if least <= 0 <= most else f"{text} [**{lead:+.1f}**]"


def summary(models: Sequence[Cells]) -> list[str]:
    """Markdown: what `auto` keeps, and the best of everything else at the same budget; its own variants apart."""
    budgets = sorted({budget for cells in models for budget in cells.budgets}, reverse=True)
    lines = ["| model, questions | | " + " | ".join(f"{budget:g}" for budget in budgets) + " |", "|---" * (len(budgets) + 2) + "|"]
    for cells in models:
        others = [name for name in cells.methods if name.partition(":")[0] != OURS]
        best = [_best(cells, others, budget) for budget in budgets]
        ours = [f"**{100 * cells.retention(OURS, budget)[0]:.1f}**" if (OURS, budget) in cells.outcomes else "-" for budget in budgets]
        lines.append(f"| {Path(cells.group[0]).name}, `{cells.group[1]}` | {OURS} | " + " | ".join(ours) + " |")
        lines.append("| | best other | " + " | ".join(best) + " |")
    return [*lines, ""]


def _best(cells: Cells, methods: Iterable[str], budget: float) -> str:
    kept = {name: cells.retention(name, budget)[0] for name in methods if (name, budget) in cells.outcomes}
    name = max(kept, key=lambda name: kept[name], default=None)
    return "-" if name is None else f"{100 * kept[name]:.1f} {name}"


def report(files: Iterable[Path], plot: Path | None) -> None:
    """Print the tables, and draw the plots where asked."""
    found = read(files)
    print("\n".join(summary(found)))
    for cells in found:
        print("\n".join(table(cells)))
        if plot is not None:
            draw(cells, plot.with_name(f"{plot.name}-{Path(cells.group[0]).name}-{cells.group[1]}"))


def _ablation(method: str) -> bool:
    return ": " in method and not method.endswith((": refitted", ": language"))


def draw(cells: Cells, place: Path) -> None:
    """Accuracy kept against visual FLOPs, every method but ablations a line, as PNG and SVG."""
    from matplotlib import figure

    drawn = figure.Figure(figsize=(8, 5), layout="constrained")
    axes = drawn.add_subplot()
    for number, method in enumerate(name for name in cells.methods if not _ablation(name)):
        points = [(cells.reached[method, budget], budget) for budget in cells.budgets if (method, budget) in cells.outcomes]
        kept = [100 * cells.retention(method, budget)[0] for _, budget in points]
        style = {"linewidth": 2.5, "color": "black", "zorder": 9} if method == OURS else {"color": f"C{number % 10}"}
        line = "o-" if method == OURS or number < 10 else "s--"
        axes.plot([share for share, _ in points], kept, line, markersize=4, label=LABELS.get(method, method), **style)
    axes.set(xscale="log", xlabel="share of the dense visual FLOPs", ylabel="accuracy kept, % of the dense model's")
    axes.set_title(f"{Path(cells.group[0]).name}, {cells.group[2]} unseen questions of {cells.group[1]}", fontsize=10)
    axes.minorticks_off()
    axes.set_xticks(cells.budgets, [f"{budget:g}" for budget in cells.budgets])
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    for suffix in (".png", ".svg"):
        drawn.savefig(place.with_name(place.name + suffix), dpi=150)
