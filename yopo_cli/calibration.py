"""Statistics of a model for its plan: from a file, or from running the dense model over samples."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from math import ceil
from pathlib import Path
from typing import Any

from converters.data.examples import Examples, batches, bundled_examples, read_examples
from converters.data.prompts import encode_examples
from converters.errors import YopoError
from converters.loading import DEMO, Dtype, Loaded, load
from converters.processes import Processes, joined, only_first

from .ui.terminal import sample_bar, say, warn

BATCH_SIZE = 4


@dataclass(frozen=True)
class Calibration:
    """What was asked for: `samples` of a file, or of the bundled shapes; `statistics` is a file to reuse or to write."""

    file: Path | None
    samples: int
    seed: int
    statistics: Path | None
    device: str | None
    dtype: Dtype


def statistics_of(checkpoint: Any, source: Any, request: Calibration) -> tuple[Any, dict[str, Any]]:
    """The model's statistics, and where they come from (JSON-ready). Of several processes, all calibrate, and the first goes on.

    Raises YopoError.
    """
    from converters.calibration.statistics import Statistics

    if request.statistics is not None and request.statistics.exists():
        found = Statistics.load(request.statistics).of_model(checkpoint.fingerprint())
        only_first()
        say(f"Using the {found.samples} samples' statistics in {request.statistics}: nothing is calibrated.")
        return found, {"samples": found.samples, "from": request.statistics.name, "seed": None, "data": found.data}
    if request.statistics is not None and not request.statistics.parent.is_dir():
        raise YopoError(f"The folder {request.statistics.parent} does not exist.", "Statistics are written to --statistics: make it first.")
    examples = _examples(source, request)
    found = _measured(checkpoint, source, examples, request)
    only_first()
    if request.statistics is not None:
        _save(found, request.statistics)
    return found, {"samples": found.samples, "from": Path(examples.origin).name, "seed": request.seed, "data": found.data}


def _save(statistics: Any, file: Path) -> None:
    from safetensors import SafetensorError

    try:
        statistics.save(file)
    except (OSError, SafetensorError) as error:
        raise YopoError(f"The statistics could not be written to {file}: {error}.", "Give another place with --statistics.") from None


def _examples(source: Any, request: Calibration) -> Examples:
    if request.file is not None:
        return read_examples(request.file, answers=False, count=request.samples, seed=request.seed)
    if source.name != DEMO or source.repository is not None:
        warn(
            f"{source.name} is calibrated on the bundled pictures of coloured shapes, which are unlike what it is used for. "
            "Pass --calibration FILE.jsonl with about a hundred pictures and questions of yours."
        )
    return bundled_examples(request.samples, request.seed, "calibration")


def _measured(checkpoint: Any, source: Any, examples: Examples, request: Calibration) -> Any:
    from converters.calibration.statistics import calibrate, merge

    loaded = load(source.path, request.device, request.dtype)
    processes = joined()
    say(f"Calibrating {source.name} on {examples.count} samples ({loaded.device}, {loaded.dtype}).")
    own: Any = None
    if processes.rank * BATCH_SIZE < examples.count:  # there may be fewer batches than processes
        with sample_bar("Calibrating", ceil(examples.count / processes.count)) as progress:
            own = calibrate(
                loaded.model,
                _inputs(loaded, examples, processes),
                fingerprint=checkpoint.fingerprint(),
                total=examples.count,
                progress=_telling(progress),
            )
    del loaded
    gc.collect()  # the model has cycles, and its memory is needed for writing
    return reduce(merge, (found for found in processes.gathered(own) if found is not None))


def _inputs(loaded: Loaded, examples: Examples, processes: Processes) -> Iterator[Any]:
    for batch in processes.share(batches(examples.stream(), BATCH_SIZE)):
        yield encode_examples(loaded.processor, batch, answers=True)


def _telling(progress: Callable[[int], None]) -> Callable[[int, int | None], None]:
    return lambda done, total: progress(done)
