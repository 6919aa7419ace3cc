"""Exports of tiny models for onnxruntime, and what they are compared with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from converters.checkpoint.convert import convert
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.evaluation.reference import _entering
from converters.export.graph.builder import Graph
from converters.export.graph.calls import continuation, embedding, prefill
from converters.export.graph.check import check_graph
from converters.export.graph.precision import precision_of
from converters.export.graph.text import text_model
from converters.export.graph.weights import Store
from converters.export.onnx import manifest
from converters.export.onnx.prompts import arrange
from converters.export.onnx.session import Exported, advance, first_call
from converters.export.onnx.target import WEIGHTS
from converters.runtime.plan import Grid
from support.conversions import GREEDY, provenance
from support.random_plans import random_plan

GRID = Grid(4, 4)
"""The grid of tiny LLaVA's and tiny InternVL's pictures."""


def converted(folder: Path, model: Any, seed: int, grid: Grid = GRID) -> Path:
    """A random plan's checkpoint of a tiny model."""
    model.save_pretrained(folder / "base")
    checkpoint = open_checkpoint(folder / "base")
    return convert(checkpoint, random_plan(checkpoint.sizes, seed, (grid,)), folder / "out", provenance(folder / "base"))


def decoders(out: Path, grid: Grid, opset: int = 23, bits: int | None = None) -> Exported:
    """An export without its vision tower, whose tracing takes seconds."""
    opened = open_converted(out)
    checkpoint = opened.open_tensors()
    model = text_model(checkpoint, opened.plan)
    store = Store(checkpoint, out, WEIGHTS, beside=True)
    family, config = checkpoint.family, checkpoint.config
    builds = {
        "embed": lambda graph: embedding(graph, model),
        "prefill": lambda graph: prefill(graph, model, family.whole(config, grid)),
        "decode": lambda graph: continuation(graph, model),
    }
    graphs = {name: Graph(name, opset, ir.DataType.FLOAT, store, precision_of(bits)) for name in builds}
    for name, build in builds.items():
        build(graphs[name])
    store.finish()
    for name, graph in graphs.items():
        ir.save(graph.model({}, out), out / f"{name}.onnx")
        check_graph(out / f"{name}.onnx")
    facts = manifest.Manifest(
        "test", "onnxruntime", "float32", bits, opset, (str(grid),), {}, "embed.onnx",
        {str(grid): "prefill.onnx"}, "decode.onnx", None, model.image_tokens, (), bool(model.rotary.sections),
        model.merge, model.rotary.limit, None if family.picture is None else str(checkpoint.grids[0]),
    )  # fmt: skip
    return Exported(out, facts)


def assert_equal(exported: Exported, own: Any, inputs: Mapping[str, Any], grid: Grid | None, tokens: int = 6) -> None:
    """Logits after the prompt and after each of some further tokens are those of the PyTorch runtime; the tower is PyTorch's."""
    with torch.inference_mode():
        expected = own.generate(
            **inputs, **{**GREEDY, "max_new_tokens": tokens}, output_logits=True, return_dict_in_generate=True
        )  # fmt: skip
        embeds, _, deepstack = _entering(own, inputs)
    ids, mask = np.asarray(inputs["input_ids"]), np.asarray(inputs["attention_mask"])
    visual = np.isin(ids, exported.manifest.image_tokens) if grid else np.zeros(ids.shape, bool)
    depths = getattr(own.config.vision_config, "deepstack_visual_indexes", ())
    behind = torch.zeros(*embeds.shape[:2], len(depths), embeds.shape[2])
    if deepstack:
        behind[torch.from_numpy(visual)] = torch.stack(list(deepstack), 1)
    embeds = torch.cat([embeds, behind.flatten(2)], -1)
    tokens = None if grid is None else exported.manifest.tokens(grid)
    prompts = arrange(ids, mask, visual, grid, exported.manifest.multimodal_positions, tokens)
    laid_out = np.zeros((*prompts.ids.shape, embeds.shape[-1]), np.float32)
    laid_out[prompts.mask.astype(bool)] = embeds.numpy()[mask.astype(bool)]
    turn = first_call(exported, prompts, laid_out)
    for step, logits in enumerate(expected.logits):
        np.testing.assert_allclose(turn.logits, logits.numpy(), atol=2e-4)
        turn = advance(exported, turn, expected.sequences[:, ids.shape[1] + step, None].numpy())
