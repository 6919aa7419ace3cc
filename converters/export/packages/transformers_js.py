"""The target `transformers-js`: a folder that transformers.js loads, in Node as in a browser.

Its Python-shaped contract: `onnx/` holds three sessions, the cache is fed back as it came, as many slots as the text config has layers;
the library puts the rows of `image_features` over those of the placeholders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...checkpoint.config import CONFIG
from ...checkpoint.folder import appearing, check_apart
from ...checkpoint.skeleton import native_config
from ...errors import YopoError
from ..graph.weights import Store
from ..request import ExportReport, ExportRequest
from .packages import REPORT, Package, facts_of, notes_of, package, sizes, write_graphs
from .preprocessing import (
    GENERATION_CONFIG,
    IMAGE_CONFIG,
    PROCESSOR_CONFIG,
    TEMPLATE,
    TOKENIZER_CONFIG,
    Preprocessing,
    preprocessing,
    write_json,
)

TARGET = "transformers-js"
SESSIONS = {"embed_tokens": "embed_tokens", "decoder": "decoder_model_merged", "vision_encoder": "vision_encoder"}
# What transformers.js calls the types that graphs compute in, and the ending of their files.
DTYPES = {"float32": ("fp32", ""), "float16": ("fp16", "_fp16")}


def export(request: ExportRequest) -> ExportReport:
    """Write the package. Raises YopoError for what transformers.js cannot be given."""
    made = package(request, TARGET, "transformers.js", padded=False, features=False, ids=ir.DataType.INT64)
    if request.output is None:
        raise YopoError("A transformers.js package has a config.json of its own.", "Name a folder for it with -o.")
    check_apart(request.checkpoint.path, request.output)
    texts = preprocessing(request.checkpoint)
    with appearing(request.output, request.force) as folder:
        stores, parity = _graphs(made, folder / "onnx")
        facts = facts_of(made, parity)
        write_json(folder / REPORT, {"target": TARGET} | facts)
        _write_configs(made, texts, folder)
        names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
        files = sizes(folder, names)
    return ExportReport(
        TARGET,
        request.output,
        files,
        request.checkpoint.bytes,
        sum(store.added_bytes for store in stores) + sum(size for name, size in files.items() if name.endswith(".onnx")),
        sum(store.copied_bytes for store in stores),
        ("one picture a prompt: transformers.js fills in the first placeholder only", *notes_of(made, parity)),
        parity,
        facts,
    )


def _graphs(made: Package, folder: Path) -> tuple[list[Store], Mapping[str, Any] | None]:
    """The three sessions, each with a data file of its own, which a browser finds by its name; and how they compare with PyTorch."""
    folder.mkdir()
    ending = DTYPES[made.request.dtype][1]
    files = {}
    for name, session in SESSIONS.items():
        file = f"{session}{ending}.onnx"
        files[name] = file, Store(made.request.checkpoint, folder, f"{file}_data", False)
    parity = write_graphs(made, folder, files)
    return [store for _, store in files.values()], parity


def _write_configs(made: Package, texts: Preprocessing, folder: Path) -> None:
    checkpoint = made.request.checkpoint
    texts.write(folder)
    write_json(folder / CONFIG, _config(made))
    if texts.template is not None:
        write_json(folder / TOKENIZER_CONFIG, texts.json(TOKENIZER_CONFIG) | {"chat_template": texts.template})
        (folder / TEMPLATE).unlink(missing_ok=True)
    kind = str(texts.images.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    write_json(folder / IMAGE_CONFIG, texts.images | {"image_processor_type": kind, "processor_class": "LlavaProcessor"})
    token = texts.token(checkpoint.family.image_token(checkpoint.config))
    patch = checkpoint.config["vision_config"]["patch_size"]
    # transformers.js does not take the class token off the count, as transformers does.
    processor = {"processor_class": "LlavaProcessor", "image_token": token, "patch_size": patch, "num_additional_image_tokens": 0}
    write_json(folder / PROCESSOR_CONFIG, processor)
    if GENERATION_CONFIG not in texts.files:
        write_json(folder / GENERATION_CONFIG, {})


def _config(made: Package) -> dict[str, Any]:
    """config.json: as many layers as there are cache slots, since the library counts slots so."""
    checkpoint = made.request.checkpoint
    config = native_config(checkpoint.family, checkpoint.config)
    dtype = DTYPES[made.request.dtype][0]
    text = {"model_type": "llama"} | config["text_config"] | {"num_hidden_layers": made.slots}
    return config | {
        "model_type": made.model_type,
        "image_token_index": checkpoint.family.image_token(checkpoint.config),
        "text_config": text,
        "transformers.js_config": {"dtype": dtype, "use_external_data_format": dict.fromkeys(SESSIONS.values(), 1)},
    }
