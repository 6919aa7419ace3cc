"""The target `genai`: a folder that onnxruntime-genai's own generator runs.

It allocates every cache slot as long as the sequence, so a slot that holds fewer visual tokens is filled up with zeros, and cut again
before it is used; slots of any number, each with its own heads, are found from the decoder's inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...checkpoint.config import CONFIG
from ...checkpoint.folder import appearing, check_apart
from ...checkpoint.skeleton import native_config
from ..graph.slots import PAST, PRESENT
from ..graph.weights import Store
from ..onnx.target import check_beside
from ..request import ExportReport, ExportRequest
from .packages import REPORT, Package, facts_of, notes_of, package, sizes, write_graphs
from .preprocessing import GENERATION_CONFIG, preprocessing, write_json

TARGET = "genai"
GENAI_CONFIG = "genai_config.json"
GRAPHS = {"embed_tokens": "embed_tokens.onnx", "decoder": "decoder.onnx", "vision_encoder": "vision_encoder.onnx"}
WEIGHTS = "genai.safetensors"


def export(request: ExportRequest) -> ExportReport:
    """Write the package. Raises YopoError for what onnxruntime-genai cannot be given."""
    made = package(request, TARGET, "onnxruntime-genai", padded=True, features=True, ids=ir.DataType.INT32)
    with _folder(request) as folder:
        store = Store(request.checkpoint, folder, WEIGHTS, request.output is None)
        parity = write_graphs(made, folder, {name: (file, store) for name, file in GRAPHS.items()})
        facts = facts_of(made, parity)
        names = [*GRAPHS.values(), *store.written, REPORT, GENAI_CONFIG]
        if request.output is not None:
            texts = preprocessing(request.checkpoint)
            texts.write(folder)
            write_json(folder / CONFIG, native_config(request.checkpoint.family, request.checkpoint.config))
            names += [*texts.files, CONFIG]
        write_json(folder / REPORT, {"target": TARGET} | facts)
        write_json(folder / GENAI_CONFIG, _config(made, folder))
        files = sizes(folder, names)
    cache = facts["cache_bytes"]
    graphs = sum(files[file] for file in GRAPHS.values())
    note = (
        f"the runtime's cache is as large as the dense model's: {cache['held']} bytes after a picture and 64 text tokens, "
        f"where the plan needs {cache['needed']}"
    )
    return ExportReport(
        TARGET,
        request.folder,
        files,
        request.checkpoint.bytes,
        store.added_bytes + graphs,
        store.copied_bytes,
        (note, *notes_of(made, parity)),
        parity,
        facts,
    )


@contextmanager
def _folder(request: ExportRequest) -> Iterator[Path]:
    """The checkpoint's own folder, or a new one that appears whole."""
    if request.output is None:
        check_beside(request, GENAI_CONFIG)
        yield request.folder
        return
    check_apart(request.checkpoint.path, request.output)
    with appearing(request.output, request.force) as folder:
        yield folder


def _config(made: Package, folder: Path) -> dict[str, Any]:
    """genai_config.json. Widths are those of the tensors, so that of the embeddings counts the flag."""
    sizes_, model = made.model.sizes, made.model
    inputs = {name: name for name in ("inputs_embeds", "attention_mask", "position_ids")}
    decoder = {
        "filename": GRAPHS["decoder"],
        "head_size": sizes_.head_dim,
        "hidden_size": sizes_.hidden_size + 1,
        "num_attention_heads": sizes_.num_attention_heads,
        "num_key_value_heads": sizes_.num_key_value_heads,
        "num_hidden_layers": made.slots,
        "session_options": {"provider_options": []},
        "inputs": inputs | _slot_names("past", PAST),
        "outputs": {"logits": "logits"} | _slot_names("present", PRESENT),
    }
    return {
        "model": {
            "type": made.model_type,
            "context_length": model.rotary.limit,
            "vocab_size": model.vocabulary,
            **_special_tokens(made, folder),
            "embedding": {
                "filename": GRAPHS["embed_tokens"],
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "vision": {
                "filename": GRAPHS["vision_encoder"],
                "inputs": {"pixel_values": "pixel_values"},
                "outputs": {"image_features": "image_features"},
            },
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": model.rotary.limit, "past_present_share_buffer": False},
    }


def _slot_names(side: str, prefix: str) -> dict[str, str]:
    """How the runtime makes the names of cache tensors from a slot's number."""
    return {f"{side}_{part}_names": f"{prefix}.%d.{part}" for part in ("key", "value")}


def _special_tokens(made: Package, folder: Path) -> dict[str, Any]:
    """Ids of special tokens from the generation defaults, else from the language model's config; padding falls back to the first end."""
    checkpoint = made.request.checkpoint
    config = native_config(checkpoint.family, checkpoint.config)
    generation = preprocessing(checkpoint).json(GENERATION_CONFIG)
    found = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        places = (generation, config.get("text_config", {}), config)
        found[name] = next((place[name] for place in places if place.get(name) is not None), None)
    end = found["eos_token_id"]
    if found["pad_token_id"] is None:
        found["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {name: number for name, number in found.items() if number is not None}
