"""A frontier as a picture: how far answers are from the dense model's, against the visual FLOPs that are left."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from converters.errors import YopoError

FORMATS = (".png", ".svg")
FLOOR = 1e-4  # for an axis in powers of ten


def check_plots(files: Iterable[Path]) -> None:
    """Raise YopoError for a format that is not drawn, a folder that is not there, or where matplotlib is missing."""
    files = list(files)
    for file in files:
        if file.suffix.lower() not in FORMATS:
            raise YopoError(f"The plot {file} is neither {' nor '.join(FORMATS)}.", "Name it so, such as --plot frontier.png.")
        if not file.parent.is_dir():
            raise YopoError(f"The folder {file.parent} does not exist.", "The plot is written to --plot: make it first.")
    if files:
        _matplotlib()


def plot_frontier(frontier: Any, title: str, files: Iterable[Path]) -> None:
    """Draw a frontier into files, PNG or SVG by their names. No display is needed."""
    figures = _matplotlib()
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    passed = [(point.share, max(point.logit_drift, FLOOR)) for point in frontier.path if point.share < 1]
    asked = [(point.share, max(point.logit_drift, FLOOR)) for point in frontier.asked]
    axes.plot(*zip(*sorted(passed), strict=True), ".", color="0.7", markersize=4, label="plans passed")
    axes.plot(*zip(*sorted(asked), strict=True), "o-", color="tab:blue", label="plans found")
    axes.set(xscale="log", yscale="log", xlabel="share of the dense visual FLOPs", ylabel="logit drift of the answers")
    axes.set_title(f"{title}: {frontier.samples} questions, {frontier.forwards:.0f} forward passes of them", fontsize=10)
    axes.set_xticks([1, *(share for share, _ in asked)], ["1", *(f"{point.asked:g}" for point in frontier.asked)])
    axes.xaxis.minorticks_off()
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    for file in files:
        figure.savefig(file, dpi=150)


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError:
        raise YopoError("Plots are drawn by matplotlib, which is not installed.", "pip install 'yopo[plot]'") from None
    return figure
