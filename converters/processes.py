"""Several processes that do one command together, as `accelerate launch` and `torchrun` start them."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from converters.errors import YopoError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process's `rank` among `count`; the first one tells and writes."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """Every `count`-th item, from this process's rank on."""
        return islice(items, self.rank, None, self.count)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every one of them."""
        if self.count == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], Item]) -> Item:
        """What the first process makes, in all of them. Raises the YopoError that it raises there in all of them."""
        if self.count == 1:
            return make()
        made: tuple[Any, YopoError | None] = None, None
        if self.first:
            try:
                made = make(), None
            except YopoError as error:
                made = None, error
        value, failure = self.gathered(made)[0]
        if failure is not None:
            raise failure
        result: Item = value
        return result

    def summed(self, values: "Tensor") -> "Tensor":
        """The sums over processes of a tensor that every one of them has, in its place; to the last bit the same in all."""
        if self.count > 1:
            from torch import distributed

            distributed.all_reduce(values)
        return values


ALONE = Processes()


def rank() -> int:
    """This process's rank, from the environment alone."""
    return int(os.environ.get("RANK", "0"))


def joined() -> Processes:
    """This process among those that were started with it, connected to them. Raises YopoError without accelerate."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    try:
        state = _state()
    except ImportError:
        raise YopoError("Several processes need accelerate.", "Install it: pip install 'yopo[heal]'") from None
    return Processes(state.process_index, state.num_processes)


def only_first() -> None:
    """End this process, well done, unless it is the first: what comes now is for one to do."""
    if rank() > 0:
        raise SystemExit(0)


def own_device() -> str | None:
    """The device that belongs to this process among several; None where it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    device = _state().device
    return "cpu" if device.type == "cpu" else str(device)


def _state() -> Any:
    """Accelerate's view of the processes, on CPUs where there is nothing else or ACCELERATE_USE_CPU says so."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
