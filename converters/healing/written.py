"""A healed model as a folder: the pruned model's files with other tensors, and with the base projector beside the healed one."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.card import TEXT_STAYS, read_card
from ..checkpoint.config import has_dense_side
from ..checkpoint.convert import COPIED, SMALL_FILES_BYTES, Progress, copied_files, counter, write_runtime
from ..checkpoint.folder import appearing, check_apart, check_output, check_space, copy_file, write_config, write_text
from ..checkpoint.manifest import file_sha256
from ..checkpoint.reader import BASE_PROJECTOR, Checkpoint, Converted
from ..checkpoint.section import version
from ..checkpoint.writer import MAX_SHARD_BYTES, Entry, index_text, plan_shards, write_shard

CARD = "README.md"
SECTION = re.compile(r"## Healing\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
TEXT_CHANGED = "text keeps every head, neuron and layer, but its weights were healed (below), and its logits are not the base model's;"
WHAT = {
    "projector": "The projector learned; no weight of the language model changed, so text-only output is what it was. The base projector "
    "is kept beside it, and takes its place while the plan is switched off.",
    "language": "The projector and the language model learned (LoRA, merged): **text-only output has changed too**, and with the plan "
    "switched off this is not the base model any more.",
}


def write_healed(
    converted: Converted,
    tensors: Mapping[str, Tensor],
    healing: Mapping[str, Any],
    output: Path,
    *,
    force: bool = False,
    progress: Progress = lambda done, total: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the converted model with these tensors in place of its own; {}: as it was, with the record of a healing that did not help.

    `healing` is the record, JSON-ready. `output` appears when it is whole. Raises YopoError as `convert` does.
    """
    check_apart(converted.path, output)
    check_output(output, force)
    checkpoint = converted.open_tensors()
    base = _base_projector(converted, checkpoint, tensors) if has_dense_side({"healing": [healing]}) else {}
    entries = [Entry(name, info.dtype, info.shape) for name, info in checkpoint.stored.items()]
    entries += [Entry(name, checkpoint.tensors[place].dtype, checkpoint.tensors[place].shape) for name, place in base.items()]
    shards = plan_shards(entries, max_shard_bytes)
    total = sum(shard.bytes for shard in shards)
    check_space(output, total + SMALL_FILES_BYTES)
    count = counter(total, progress)

    def read(name: str) -> Tensor:
        if name in base:
            return checkpoint.read_base(base[name]) if checkpoint.base else checkpoint.read(base[name])
        return tensors[name] if name in tensors else checkpoint.read(name)

    with appearing(output, force) as folder:
        config = _write_small_files(folder, converted, healing, bool(base))
        if len(shards) > 1:
            write_text(folder / "model.safetensors.index.json", index_text(shards))
        files = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        for shard in shards:
            files[shard.file] = write_shard(folder, shard, read, count)
        write_config(folder, config, files)
    return output


def _base_projector(converted: Converted, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the base projector's tensors, and the projector's that they are of; {} where the projector was never changed."""
    projector = converted.family.projector
    if not converted.healed and not any(name.startswith(projector) for name in tensors):
        return {}
    names = [name for name in checkpoint.tensors if name.startswith(projector)]
    return {BASE_PROJECTOR + name.removeprefix(projector): name for name in names}


def _write_small_files(folder: Path, converted: Converted, healing: Mapping[str, Any], base: bool) -> Mapping[str, Any]:
    """Card, runtime; the pruned model's other files as they are. Returns the config."""
    for file in copied_files(converted.path, COPIED):
        copy_file(file, folder)
    write_runtime(folder, converted.family)
    healings = [*converted.section.get("healing", []), dict(healing)]
    section = dict(converted.section) | {"version": version(), "base_projector": base, "healing": healings}
    card = converted.path / CARD
    write_text(folder / CARD, healed_card(read_card(card), healings))
    return dict(converted.config) | {"yopo": section}


def healed_card(card: str, healings: list[Any]) -> str:
    """The model card with the section on healing, before that on use; it does not promise what healing broke."""
    card = SECTION.sub("", card)
    if not has_dense_side({"healing": healings}):
        card = card.replace(TEXT_STAYS, TEXT_CHANGED)
    text = "## Healing\n\n" + "\n".join(map(_sentence, healings))
    before, use, after = card.partition("## Use\n")
    return before.rstrip("\n") + "\n\n" + text + (f"\n{use}{after}" if use else "")


def _sentence(healing: Mapping[str, Any]) -> str:
    divergence = healing["divergence"]
    after = f"{divergence['before']:.6f} to {divergence['after']:.6f} nats a token"
    kept = WHAT[healing["tune"]] if healing["kept"] else "This did not help, and nothing was changed."
    return (
        f"{healing['steps']} steps of {healing['batch_size']} questions on {healing['samples']} of "
        f"{json.dumps(healing['data']['from'])}: the dense model's own answers were distilled, no labels. Divergence from them on "
        f"{healing['held_out']} questions that were held out: {after}. {kept}\n\n    {healing['command']}\n"
    )
