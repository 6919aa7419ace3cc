"""From a checkpoint and a plan to a new checkpoint: decide, validate, then write."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import YopoError
from ..families import Family
from ..planning.compensation import LinearCompensation
from ..runtime import RUNTIME_FILES
from ..runtime.plan import Plan, PlanError, Sizes, factored, normalise, ranges, validate
from .card import LICENCE_FILES, card
from .compensation import merged
from .config import CONFIG
from .folder import appearing, check_apart, check_output, check_space, copy_file, synchronise, write_bytes, write_config, write_text
from .header import TensorInfo
from .manifest import file_sha256, is_exported
from .permutation import Permutation, permutations
from .reader import Checkpoint
from .section import Provenance, Refitted, converted_config
from .skeleton import native_config
from .visual_projections import refitted_layers
from .writer import MAX_SHARD_BYTES, Entry, index_text, plan_shards, write_shard

__all__ = ["Provenance", "check_output", "check_plan", "convert"]

# Beside the weights: tokenizer, processor, chat template, generation defaults; the config, index and card are written anew.
COPIED = ("*.json", "*.jinja", "*.model", "*.txt", *LICENCE_FILES)
SMALL_FILES_BYTES = 64_000_000
RUNTIME = Path(__file__).parent.parent / "runtime"

Progress = Callable[[int, int], None]


def convert(
    checkpoint: Checkpoint,
    plan: Plan | None,
    output: Path,
    provenance: Provenance,
    *,
    refits: Mapping[int, LinearCompensation] = {},
    force: bool = False,
    progress: Progress = lambda done, total: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the checkpoint, pruned by `plan`, to the folder `output`, which appears when it is whole; None: unpruned, native form.

    `refits`, by layer, are merged into projections that visual tokens alone take K and V from.
    `progress` is told bytes done and bytes in all. Raises YopoError for a plan of another model, weights that are not finite, an
    output that exists (unless `force`) and a full disk; KeyboardInterrupt on signals. Nothing is left behind then.
    """
    output = Path(output)
    check_apart(checkpoint.path, output)
    check_output(output, force)
    plan = None if plan is None else _fitted_plan(plan, checkpoint, refits)
    moved = {} if plan is None else _permutations(checkpoint, plan)
    stored = checkpoint.written
    entries = [Entry(name, info.read_dtype, info.shape) for name, info in stored.items()]
    added = {} if plan is None else merged(checkpoint, plan, refits)
    entries += [Entry(name, one.dtype, one.shape) for name, one in added.items()]
    shards = plan_shards(entries, max_shard_bytes)
    total = sum(shard.bytes for shard in shards)
    check_space(output, total + SMALL_FILES_BYTES)
    refitted = Refitted(refitted_layers(plan, refits), total - checkpoint.bytes) if plan and added else None
    count = counter(total, progress)

    def tensor(name: str) -> Tensor:
        return added[name].tensor() if name in added else _permuted(checkpoint, stored[name], name, moved)

    with appearing(output, force) as folder:
        config = _write_small_files(folder, checkpoint, plan, provenance, refitted)
        if len(shards) > 1:
            write_text(folder / "model.safetensors.index.json", index_text(shards))
        files = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        for shard in shards:
            files[shard.file] = write_shard(folder, shard, tensor, count)
        write_config(folder, config, files)
    return output


def _fitted_plan(plan: Plan, checkpoint: Checkpoint, refits: Mapping[int, LinearCompensation]) -> Plan:
    """The plan, checked. Raises YopoError where ranks come without their factors."""
    plan = check_plan(plan, checkpoint.sizes)
    if not refits.keys() >= set(factored(plan)):
        raise YopoError(
            f"Visual K and V in layers {ranges(factored(plan))} have a rank, whose factors have to be fitted.",
            "Leave out --compensation none, or make the plan with it.",
        )
    return plan


def _permutations(checkpoint: Checkpoint, plan: Plan) -> Mapping[str, Permutation]:
    """By tensor, how its rows or columns are put in order."""
    moved = permutations(checkpoint.family, plan)
    if absent := sorted(name for name in moved.keys() - checkpoint.tensors.keys() if name.endswith(".weight")):
        raise RuntimeError(f"the facts of {checkpoint.family.name} name tensors that are not there: {absent}")
    return moved


def check_plan(plan: Plan, sizes: Sizes) -> Plan:
    """The plan, normalised. Raises YopoError if it cannot be obeyed by a model of these sizes."""
    different = [
        f"{field.name} {getattr(plan.sizes, field.name)} instead of {getattr(sizes, field.name)}"
        for field in fields(Sizes)
        if getattr(plan.sizes, field.name) != getattr(sizes, field.name)
    ]
    if different:
        raise YopoError(f"The plan is for another model: {', '.join(different)}.", "Use a plan that was made for this model.")
    try:
        return normalise(validate(plan))
    except PlanError as error:
        raise YopoError(f"The plan cannot be obeyed: {error}.", "Correct it, or let `yopo convert --dry-run` make one.") from None


def _permuted(checkpoint: Checkpoint, info: TensorInfo, name: str, moved: Mapping[str, Permutation]) -> Tensor:
    """A tensor in the order of pruning: of a quantised weight the scales of its outputs go with them."""
    weight, tensor = f"{name.rpartition('.')[0]}.weight", checkpoint.read_as(info)
    if name in moved:
        return moved[name].apply(tensor)
    if name in checkpoint.tensors or weight not in moved or moved[weight].dimension or len(tensor.flatten()) == 1:
        return tensor
    return moved[weight].apply(tensor)


def _write_small_files(
    folder: Path, checkpoint: Checkpoint, plan: Plan | None, provenance: Provenance, refitted: Refitted | None
) -> Mapping[str, Any]:  # fmt: skip
    """All but the weights and config.json, which is returned: it tells what all others are."""
    for file in copied_files(checkpoint.path, LICENCE_FILES if checkpoint.foreign else COPIED):
        copy_file(file, folder)
    if checkpoint.foreign:
        checkpoint.write_processor(folder)
        for file in folder.iterdir():
            synchronise(file)
    if plan is None:
        config = native_config(checkpoint.family, checkpoint.config)
    else:
        config = converted_config(checkpoint.family, checkpoint.config, plan, provenance, checkpoint.fingerprint(), refitted)
        write_runtime(folder, checkpoint.family)
    write_text(folder / "README.md", card(checkpoint.family, checkpoint.path, plan, provenance, refitted))
    return config


def write_runtime(folder: Path, family: Family) -> None:
    """The code that a converted model loads as remote code."""
    for name in (*RUNTIME_FILES, f"modeling_{family.yopo_model_type}.py"):
        write_bytes(folder / name, (RUNTIME / name).read_bytes())


def copied_files(path: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """What of a checkpoint is neither weights nor config, nor an export beside them."""
    found = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    return (file for file in sorted(found) if file.name != CONFIG and not file.name.endswith(".index.json") and not is_exported(file.name))


def counter(total: int, progress: Progress) -> Callable[[int], None]:
    """Tells `progress` the sum of what it is told, out of `total`."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count
