"""Packages for runtimes with a contract of their own: three graphs, of which one decoder serves every call, and their config files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import YopoError
from ...planning.cost import REFERENCE_TEXT_TOKENS
from ...runtime.plan import Grid
from ..graph import single
from ..graph.builder import Graph
from ..graph.check import check_graph
from ..graph.precision import precision_of
from ..graph.slots import slots
from ..graph.text import TextModel, text_model
from ..graph.vision import vision_model
from ..graph.weights import ByteRange, Store
from ..onnx.target import COMPUTE, metadata
from ..request import ExportRequest
from .session import PackageSession

FLOAT = ir.DataType.FLOAT
NOT_COMPARED = "not compared with PyTorch"
REPORT = "export_report.json"


@dataclass(frozen=True)
class Package:
    """One export for another runtime: what was asked for, and the model type that the runtime knows the graphs by.

    `padded` tells whether all cache slots are as long as the sequence, `features` whether the embedding graph puts them in their places.
    """

    request: ExportRequest
    model_type: str
    model: TextModel
    padded: bool
    features: bool
    ids: ir.DataType

    @property
    def grid(self) -> Grid:
        return self.request.checkpoint.grids[0]

    @property
    def compute(self) -> ir.DataType:
        return COMPUTE[self.request.dtype]

    @property
    def opset(self) -> int:
        return min(self.request.opset, single.ATTENTION_OPSET)

    @property
    def slots(self) -> int:
        """Cache slots, the timeline's included."""
        return 1 + len(slots(self.model))

    def builders(self) -> dict[str, Callable[[Graph], None]]:
        """The graphs of the language model by session name."""
        family = self.request.checkpoint.family
        token = family.image_token(self.request.checkpoint.config) if self.features else None
        return {
            "embed_tokens": lambda graph: single.embedding(graph, self.model, self.ids, token),
            "decoder": lambda graph: single.decoder(graph, self.model, self.grid, self.padded),
        }

    def cache_bytes(self) -> dict[str, int]:
        """The cache after one picture and 64 text tokens: as the runtime holds it, and as short as the plan allows."""
        count = partial(single.cache_bytes, self.model, self.grid, REFERENCE_TEXT_TOKENS, int(self.compute.itemsize))
        return {"held": count(self.padded), "needed": count(False)}


def package(request: ExportRequest, target: str, runtime: str, *, padded: bool, features: bool, ids: ir.DataType) -> Package:
    """Check that the runtime takes such a model. Raises YopoError where it does not."""
    family = request.checkpoint.family
    model_type = dict(family.packages).get(target)
    if model_type is None:
        raise YopoError(f"{runtime} cannot be given a {family.name}: it has no class that takes its graphs.", "Use --target onnxruntime.")
    if set(request.grids) - set(request.checkpoint.grids):
        raise YopoError(f"A {family.name} has pictures of one grid, {request.checkpoint.grids[0]}.", "Leave --grid out.")
    return Package(request, model_type, text_model(request.checkpoint, request.plan), padded, features, ids)


def write_graphs(made: Package, folder: Path, files: dict[str, tuple[str, Store]]) -> Mapping[str, Any] | None:
    """Write the graphs by session name to files with stores; stores that several share are finished once.

    They are checked, and compared with PyTorch where the request wants that: returns the parity report.
    """
    models: dict[str, Callable[[], ir.Model]] = {}
    facts = metadata(made.request)
    for name, build in made.builders().items():
        store = files[name][1]
        graph = Graph(name, made.opset, made.compute, store, precision_of(made.request.bits))
        build(graph)
        models[name] = partial(graph.model, facts, folder)
    store = files["vision_encoder"][1]
    vision, pieces = vision_model(made.request.checkpoint, store, made.grid, made.opset, made.compute)
    _mark(vision.graph)
    models["vision_encoder"] = partial(_placed, vision, pieces, store, facts, folder)
    for one in {id(store): store for _, store in files.values()}.values():
        one.finish()
    for name, model in models.items():
        ir.save(model(), folder / files[name][0])
        check_graph(folder / files[name][0])
    if made.request.compare is None:
        return None
    made.request.say("Comparing with PyTorch ...")
    return dict(made.request.compare(_session(made, {name: folder / file for name, (file, _) in files.items()})))


def _session(made: Package, files: Mapping[str, Path]) -> PackageSession:
    checkpoint = made.request.checkpoint
    token = checkpoint.family.image_token(checkpoint.config)
    return PackageSession(files["embed_tokens"], files["decoder"], files["vision_encoder"], token, made.request.dtype, made.request.bits)


def facts_of(made: Package, parity: Mapping[str, Any] | None) -> dict[str, Any]:
    """What REPORT tells of a package: its cache, its operators, and how it compares with PyTorch."""
    return {"cache_bytes": made.cache_bytes(), "cache_slots": made.slots, "opset": made.opset, "parity": parity}


def notes_of(made: Package, parity: Mapping[str, Any] | None) -> Iterator[str]:
    """What the user should know of any package."""
    if made.opset < made.request.opset:
        yield f"written at opset {made.opset}: the attention operator of later ones refuses calls without visual rows"
    if parity is None:
        yield NOT_COMPARED


def _placed(model: ir.Model, pieces: Mapping[str, ByteRange], store: Store, metadata: Mapping[str, str], folder: Path) -> ir.Model:
    """The vision graph with its weights in the files of a finished store."""
    for name, piece in pieces.items():
        model.graph.initializers[name].const_value = store.external(piece, name, folder)
    model.metadata_props.update(metadata)
    return model


def _mark(graph: ir.Graph) -> None:
    """The vision graph's features get the flag of visual rows as last channel; pixels and features are float32 whatever is computed in."""
    pixels, features = graph.inputs[0], graph.outputs[0]
    if pixels.dtype != FLOAT:
        inner = ir.node("Cast", [pixels], {"to": pixels.dtype})
        ir.convenience.replace_all_uses_with(pixels, inner.outputs[0])
        inner.replace_input_with(0, pixels)
        pixels.dtype = FLOAT
        graph.insert_before(graph[0], inner)
    wide = ir.node("Cast", [features], {"to": FLOAT})
    pads, one = (ir.tensor(data, name=name) for name, data in (("flag_pads", np.array([0, 0, 0, 1])), ("flag", np.array(1, np.float32))))
    values = [ir.val(str(tensor.name), const_value=tensor) for tensor in (pads, one)]
    for value in values:
        graph.register_initializer(value)
    marked = ir.node("Pad", [wide.outputs[0], *values])
    graph.extend([wide, marked])
    output = marked.outputs[0]
    assert features.shape is not None
    rows, width = features.shape
    assert isinstance(width, int)
    features.name, output.name = "features", "image_features"
    output.dtype, output.shape = FLOAT, ir.Shape([rows, width + 1])
    graph.outputs[0] = output


def sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Bytes of files."""
    return {name: (folder / name).stat().st_size for name in names}
