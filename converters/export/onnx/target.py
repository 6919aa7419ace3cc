"""The onnxruntime target: graphs of a model, checked, beside its weights or in a folder of their own."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...checkpoint.config import CONFIG
from ...checkpoint.convert import COPIED
from ...checkpoint.folder import appearing, check_apart, check_space
from ...checkpoint.interruption import uninterrupted
from ...checkpoint.manifest import file_sha256
from ...checkpoint.section import version
from ...errors import YopoError
from ...json_files import read_object
from ...runtime.plan import Grid, to_json
from ..graph.builder import Graph
from ..graph.calls import continuation, embedding, prefill
from ..graph.check import check_graph
from ..graph.precision import precision_of
from ..graph.text import TextModel, text_model
from ..graph.vision import vision_model
from ..graph.weights import ByteRange, Store
from ..request import ExportReport, ExportRequest
from . import manifest as manifests
from .manifest import MANIFEST, Manifest
from .session import open_export

WEIGHTS = "onnx_weights.safetensors"
DTYPE_WORDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
COMPUTE = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
EMBEDDING, CONTINUATION, DENSE, VISION = "embed_tokens", "decoder_decode", "decoder_dense", "vision_encoder"


def export(request: ExportRequest) -> ExportReport:
    """Write the graphs of a model. Raises YopoError for what cannot be; nothing is left behind then."""
    if request.output is None:
        check_beside(request, MANIFEST)
        with _removed_on_failure(request.folder):
            return _write(request, request.folder)
    check_apart(request.checkpoint.path, request.output)
    with appearing(request.output, request.force) as folder:
        _copy_small_files(request, folder)
        return replace(_write(request, folder), folder=request.output)


def check_beside(request: ExportRequest, marker: str) -> None:
    """Raise YopoError where graphs cannot lie beside the weights; `marker` is the file that tells an export is there.

    Graphs refer to files in their own folder alone, and to real ones: onnx's checker refuses links, of which a hub's cache consists.
    """
    folder = request.folder
    if (folder / marker).exists() and not request.force:
        raise YopoError(f"{folder} holds an export already.", "Replace it with --force, or write to another folder with -o.")
    linked = {info.file for info in request.checkpoint.tensors.values() if info.file.is_symlink() or info.file.stat().st_nlink > 1}
    if linked or request.checkpoint.foreign:
        why = f"{sorted(linked)[0].name} is a link" if linked else "its layout is not transformers'"
        raise YopoError(f"Graphs cannot refer to the weights of {folder}: {why}.", "Write to a folder of its own with -o.")


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """An earlier export ends here; a new one that is not finished leaves nothing."""
    with uninterrupted() as signals:
        forget(folder)
        before = set(folder.iterdir())
        with _without(folder, before), signals.admitted():
            yield


@contextmanager
def _without(folder: Path, before: set[Path]) -> Iterator[None]:
    """Remove what an export has added, where it fails."""
    try:
        yield
    except BaseException:
        for file in set(folder.iterdir()) - before:
            if file.suffix in (".onnx", ".safetensors") or file.name == MANIFEST:
                file.unlink()
        raise


def forget(folder: Path) -> None:
    """Remove an export from a folder, its list of files first."""
    if not (folder / MANIFEST).exists():
        return
    files = manifests.read(folder).files
    (folder / MANIFEST).unlink()
    for name in files:
        (folder / name).unlink(missing_ok=True)


def _copy_small_files(request: ExportRequest, folder: Path) -> None:
    """Config, tokenizer and processor."""
    source = request.checkpoint.path
    if request.checkpoint.foreign:
        request.checkpoint.write_processor(folder)
        (folder / CONFIG).write_text(json.dumps(dict(request.checkpoint.config), indent=2) + "\n", encoding="utf-8")
        return
    for pattern in COPIED:
        for file in source.glob(pattern):
            if not file.name.endswith(".index.json") and file.name != MANIFEST:
                shutil.copyfile(file, folder / file.name)


def _write(request: ExportRequest, folder: Path) -> ExportReport:
    started = time.monotonic()
    checkpoint, compute = request.checkpoint, COMPUTE[request.dtype]
    store = Store(checkpoint, folder, WEIGHTS, beside=request.output is None)
    model = text_model(checkpoint, request.plan)
    graphs = {name: _built(name, build, request, store, compute) for name, build in _graphs(request, model).items()}
    towers: dict[str, tuple[ir.Model, Mapping[str, ByteRange]]] = {}
    for name, grid in _towers(request, model).items():
        request.say(f"Tracing the vision tower{f' for {grid}' if name != VISION else ''} ...")
        towers[name] = vision_model(checkpoint, store, grid, request.opset, compute)
    check_space(folder, store.bytes_to_write)
    request.say("Writing ...")
    store.finish()
    facts_of_all = metadata(request)
    for name, graph in graphs.items():
        ir.save(graph.model(facts_of_all, folder), folder / f"{name}.onnx")
    for name, (tower, pieces) in towers.items():
        for label, piece in pieces.items():
            tower.graph.initializers[label].const_value = store.external(piece, label, folder)
        tower.metadata_props.update(facts_of_all)
        ir.save(tower, folder / f"{name}.onnx")
    files = [f"{name}.onnx" for name in (*graphs, *towers)]
    for file in files:
        check_graph(folder / file)
    facts = _manifest(request, model, (*files, *store.written), folder)
    return _reported(request, folder, facts, store, started)


Build = Callable[[Graph], None]


def _graphs(request: ExportRequest, model: TextModel) -> dict[str, Build]:
    """How each graph but those of the tower is built, by file name."""
    graphs: dict[str, Build] = {EMBEDDING: lambda graph: embedding(graph, model)}
    graphs[CONTINUATION] = lambda graph: continuation(graph, model)
    if request.plan is not None:
        for grid in request.grids:
            graphs[_prefill_name(grid)] = partial(prefill, model=model, grids=_whole(request, grid))
        dense = replace(model, plan=None)
        graphs[DENSE] = lambda graph: continuation(graph, dense)
    return graphs


def _whole(request: ExportRequest, grid: Grid) -> tuple[Grid, ...]:
    """The grids of a picture of which this is the last."""
    return request.checkpoint.family.whole(request.checkpoint.config, grid)


def _prefill_name(grid: Grid) -> str:
    return f"decoder_prefill_{grid}"


def _built(name: str, build: Build, request: ExportRequest, store: Store, compute: ir.DataType) -> Graph:
    graph = Graph(name, request.opset, compute, store, precision_of(request.bits))
    build(graph)
    return graph


def _towers(request: ExportRequest, model: TextModel) -> dict[str, Grid]:
    """The graphs of the vision tower: one, or one for each grid where pictures differ."""
    if model.rotary.sections or request.checkpoint.family.picture is not None:
        return {f"{VISION}_{grid}": grid for grid in request.grids}
    return {VISION: request.grids[0]}


def metadata(request: ExportRequest) -> dict[str, str]:
    """What every graph says about itself; ONNX Runtime shows it as `custom_metadata_map`."""
    plan = request.plan
    facts: dict[str, Any] = {
        "version": version(),
        "grids": ",".join(map(str, request.grids)),
        "plan": None if plan is None else json.dumps(to_json(plan), separators=(",", ":")),
        "windows": None if plan is None else json.dumps([layer.window for layer in plan.layers]),
        "visual_depth": None if plan is None else plan.visual_depth,
        "model": request.name,
        "revision": request.revision,
    }
    return {f"yopo.{name}": str(value) for name, value in facts.items() if value is not None}


def _manifest(request: ExportRequest, model: TextModel, files: Sequence[str], folder: Path) -> Manifest:
    towers = _towers(request, model)
    vision = {str(grid): f"{next((name for name, one in towers.items() if one == grid), VISION)}.onnx" for grid in request.grids}
    return Manifest(
        version=version(),
        target="onnxruntime",
        dtype=request.dtype,
        bits=request.bits,
        opset=request.opset,
        grids=tuple(map(str, request.grids)),
        vision=vision,
        embedding=f"{EMBEDDING}.onnx",
        prefill={str(grid): f"{_prefill_name(grid)}.onnx" for grid in request.grids} if request.plan else {},
        continuation=f"{CONTINUATION}.onnx",
        dense=None if request.plan is None else f"{DENSE}.onnx",
        image_tokens=model.image_tokens,
        end_tokens=_end_tokens(folder, model),
        multimodal_positions=bool(model.rotary.sections),
        merge=model.merge,
        max_positions=model.rotary.limit,
        tile=None if request.checkpoint.family.picture is None else str(request.checkpoint.grids[0]),
        files={file: file_sha256(folder / file) for file in files},
    )


def _end_tokens(folder: Path, model: TextModel) -> tuple[int, ...]:
    """Where generation stops: what generation_config.json says, else the config."""
    file = folder / "generation_config.json"
    ends = read_object(file, "Fetch it again.").get("eos_token_id") if file.exists() else None
    ends = model.end_tokens if ends is None else ends
    found = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
    if not all(type(end) is int for end in found):
        raise YopoError(f"{file} has an eos_token_id that is no token: {ends!r:.60}.", "Correct it, or fetch it again.")
    return found


def _reported(request: ExportRequest, folder: Path, facts: Manifest, store: Store, started: float) -> ExportReport:
    """Compare, then write the manifest: what stands in it has been seen to hold."""
    manifests.write(folder, facts)
    compared = None
    if request.compare is not None:
        request.say("Comparing with PyTorch ...")
        try:
            compared = dict(request.compare(open_export(folder)))
        except BaseException:
            (folder / MANIFEST).unlink()
            raise
    sizes = {file: (folder / file).stat().st_size for file in facts.files}
    graphs = sum(size for file, size in sizes.items() if file.endswith(".onnx"))
    report = ExportReport(
        target="onnxruntime",
        folder=folder,
        files=sizes,
        checkpoint_bytes=request.checkpoint.bytes,
        added_bytes=store.added_bytes + graphs,
        copied_bytes=store.copied_bytes,
        notes=tuple(_notes(request)),
        parity=compared,
        seconds=round(time.monotonic() - started, 3),
    )
    stored = {name: value for name, value in asdict(report).items() if name not in ("folder", "files", "seconds")}
    manifests.write(folder, replace(facts, report=stored))
    return report


def _notes(request: ExportRequest) -> Iterator[str]:
    """What the user should know of these graphs."""
    saved = {DTYPE_WORDS.get(info.dtype, info.dtype) for info in request.checkpoint.tensors.values()} - {request.dtype}
    if saved and request.bits is None:
        yield f"weights are {', '.join(sorted(saved))} in the file and become {request.dtype} whenever a session loads them"
    if request.compare is None:
        yield "not compared with PyTorch"
