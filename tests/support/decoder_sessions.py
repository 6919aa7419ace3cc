"""One decoder graph, driven as onnxruntime-genai and transformers.js do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from converters.checkpoint.reader import Checkpoint
from converters.export.graph import single
from converters.export.graph.builder import Graph
from converters.export.graph.precision import precision_of
from converters.export.graph.text import text_model
from converters.export.graph.weights import Store
from converters.runtime.plan import Grid, Plan

GRID = Grid(4, 4)
STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}


class Decoder:
    """A decoder session, driven as both runtimes do: embeddings, mask and positions in, every `present` back as the next `past`."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        self.past = {value.name: value for value in self.session.get_inputs() if value.name.startswith("past")}

    def __call__(self, embeds: Any, mask: Any, past: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Logits of the last token `[batch, vocabulary]`, and the cache."""
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -embeds.shape[1] :]
        if past is None:
            past = {name: np.zeros(_empty(value.shape, len(embeds)), np.float32) for name, value in self.past.items()}
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, **past}
        found = dict(zip([value.name for value in self.session.get_outputs()], self.session.run(None, feeds), strict=True))
        return found.pop("logits")[:, 0], {name.replace("present", "past_key_values"): value for name, value in found.items()}


def _empty(shape: list[Any], batch: int) -> list[int]:
    """As transformers.js makes it: numbers as they are, `batch_size`, and nothing of any other length."""
    return [length if isinstance(length, int) else batch if length == "batch_size" else 0 for length in shape]


def decoder(folder: Path, checkpoint: Checkpoint, plan: Plan | None, padded: bool) -> Decoder:
    store = Store(checkpoint, folder, f"decoder{padded}.data", False)
    graph = Graph("decoder", single.ATTENTION_OPSET, ir.DataType.FLOAT, store, precision_of(None))
    single.decoder(graph, text_model(checkpoint, plan), GRID, padded)
    store.finish()
    file = folder / f"decoder{padded}.onnx"
    ir.save(graph.model({}, folder), file)
    return Decoder(file)


def embedded(model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """`[batch, length, hidden + 1]`: words, picture features in their places, and the flag."""
    ids = inputs["input_ids"]
    rows = model.get_input_embeddings()(ids)
    visual = ids == model.config.image_token_id
    if "pixel_values" in inputs:
        features = model.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        rows[visual] = torch.cat(list(features)).flatten(0, -2)
    return torch.cat([rows, visual[..., None]], -1).numpy()


def assert_same_answers(run: Decoder, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Logits of the first token and greedy tokens are the PyTorch runtime's. Returns the cache."""
    with torch.inference_mode():
        expected = model(**inputs).logits[:, -1]
        tokens = model.generate(**inputs, **GREEDY, suppress_tokens=[model.config.image_token_id])[:, inputs["input_ids"].shape[1] :]
        embeds, mask, past = embedded(model, inputs), inputs["attention_mask"].numpy(), None
        for step in range(STEPS):
            logits, past = run(embeds, mask, past)
            if not step:
                np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
            logits[:, model.config.image_token_id] = -np.inf
            chosen = torch.from_numpy(logits.argmax(1))
            assert chosen.equal(tokens[:, step])
            embeds = embedded(model, {"input_ids": chosen[:, None]})
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], 1)
    return past
