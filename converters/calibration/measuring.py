"""Statistics of a model from samples: its own process's share of them, or all."""

from collections.abc import Iterator
from functools import reduce
from math import ceil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..data.prompts import encode_samples
from ..data.samples import Samples, batches
from ..errors import YopoError
from ..loading import Loaded
from ..processes import Processes, joined
from ..progress import Listener, Message, Progress
from .statistics import Statistics, calibrate, merge

BATCH_SIZE = 4


def measured_statistics(loaded: Loaded, name: str, fingerprint: str, samples: Samples, progress: Listener) -> Statistics:
    """The statistics of a loaded dense model; of several processes, each measures its share, and all get the sum. Raises YopoError."""
    processes = joined()
    left_out = f"; {samples.left_out} without a picture are left out" if samples.left_out else ""
    progress(Message(f"Calibrating {name} on {samples.count} samples ({loaded.device}, {loaded.dtype}){left_out}."))
    share: Statistics | None = None
    if processes.rank * BATCH_SIZE < samples.count:  # there may be fewer batches than processes
        total = ceil(samples.count / processes.count)
        share = calibrate(
            loaded.model,
            _inputs(loaded, samples, processes),
            fingerprint=fingerprint,
            progress=lambda done, _: progress(Progress("Calibrating", min(done, total), total, "samples")),
        )
    shares: list[Statistics | None] = processes.gathered(share)
    return reduce(merge, (one for one in shares if one is not None))


def _inputs(loaded: Loaded, samples: Samples, processes: Processes) -> Iterator[Any]:
    for batch in processes.share(batches(samples.stream(), BATCH_SIZE)):
        yield encode_samples(loaded.processor, batch, answers=True)


def save_statistics(statistics: Statistics, file: Path) -> None:
    """Write statistics to a file. Raises YopoError where that cannot be done."""
    try:
        statistics.save(file)
    except (OSError, SafetensorError) as error:
        raise YopoError(f"The statistics could not be written to {file}: {error}.", "Give another place with --statistics.") from None
