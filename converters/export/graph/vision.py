"""The vision tower and the projector as one graph: traced from transformers' own modules, whose weights are never read."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
import transformers
from onnx_ir.passes import Sequential, common
from torch import Tensor, nn
from torch.nn import functional
from transformers.initialization import no_init_weights
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision, get_vision_position_ids

from ...checkpoint.reader import Checkpoint
from ...checkpoint.skeleton import native_config
from ...errors import YopoError
from ...families import Family
from ...families.llava_next import tiling
from ...runtime.plan import Grid
from .builder import IR_VERSIONS
from .weights import ByteRange, Store, Weight

TRACED_IMAGES = 2
"""Any number but 0 and 1, which torch.export takes for constants."""


class Pictures(nn.Module):
    """Pixels `[images, channels, height, width]` to features `[images * tokens, hidden]`: towers of one resolution."""

    def __init__(self, model: Any, grid: Grid) -> None:
        super().__init__()
        self.model = model
        vision = model.config.vision_config
        sides = vision.image_size if isinstance(vision.image_size, list | tuple) else (vision.image_size,) * 2
        self.example = (TRACED_IMAGES, vision.num_channels, *sides)
        self.rows_of_an_image = 1
        # Some models make a list of the images, which would fix their number: as one item their number stays open.
        model.multi_modal_projector.register_forward_hook(lambda module, inputs, features: features[None])

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output[0]
        return features.flatten(0, 1)


class TiledPictures(nn.Module):
    """Tiles `[pictures, tiles, channels, height, width]` of pictures of one grid to features `[pictures * tokens, hidden]`.

    The first tile is the whole picture. What LLaVA-NeXT and LLaVA-OneVision make of a picture's features: tiles side by side, without
    their padding, an end after every row.
    """

    def __init__(self, model: Any, family: Family, config: Mapping[str, Any], grid: Grid) -> None:
        super().__init__()
        self.model, self.tile = model, family.grid(config)
        black = family.black(config, family.whole(config, grid), TRACED_IMAGES)
        self.cut, self.example = tiling(config, black["image_sizes"][0].tolist()), tuple(black["pixel_values"].shape)
        self.rows_of_an_image = 1
        if self.cut.shown != self.cut.unpadded:
            raise YopoError(f"Pictures of {grid} are shrunk inside this model, which no graph does.", "Export a smaller grid.")

    def forward(self, pixel_values: Tensor) -> Tensor:
        config, sides = self.model.config, (self.tile.rows, self.tile.columns)
        layers = config.vision_feature_layer
        hidden = self.model.vision_tower(pixel_values.flatten(0, 1), output_hidden_states=True, return_dict=True).hidden_states
        rows = torch.cat([hidden[layer] for layer in (layers if isinstance(layers, list | tuple) else (layers,))], -1)
        rows = rows[:, 1:] if config.vision_feature_select_strategy == "default" else rows
        rows = self.model.multi_modal_projector(rows).unflatten(0, (-1, self.example[1]))
        large = rows[:, 1:].unflatten(1, self.cut.tiles).unflatten(3, sides).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        for axis, (shown, whole) in enumerate(zip(self.cut.unpadded, large.shape[1:3], strict=True), 1):
            large = large.narrow(axis, (whole - shown) // 2, shown)
        ends = self.model.image_newline.to(large.dtype).expand(large.shape[0], large.shape[1], 1, -1)
        return torch.cat([rows[:, 0], torch.cat([large, ends], 2).flatten(1, 2)], 1).flatten(0, 1)


class Shuffled(nn.Module):
    """Tiles `[tiles, channels, height, width]` to features `[tiles * tokens, hidden]`: SmolVLM's tower and Idefics3's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        vision, seen = model.config.vision_config, list[Tensor]()
        self.example = (TRACED_IMAGES, vision.num_channels, vision.image_size, vision.image_size)
        self.rows_of_an_image = 1
        embeddings, side = model.vision_model.embeddings, vision.image_size // vision.patch_size
        hook = embeddings.position_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        embeddings(torch.zeros(1, *self.example[1:], dtype=model.dtype), torch.ones(1, side, side, dtype=torch.bool))
        hook.remove()
        self.register_buffer("places", seen[0], persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tower, places = self.model.vision_model, self.get_buffer("places")
        rows = tower.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + tower.embeddings.position_embedding(places)
        rows = tower.post_layernorm(tower.encoder(inputs_embeds=rows, attention_mask=None).last_hidden_state)
        features: Tensor = self.model.connector(rows)
        return features.flatten(0, 1)


class Patches(nn.Module):
    """Patches `[images * patches, values]` of images (or videos) of one grid to features `[images * tokens, hidden]`: Qwen2-VL's tower.

    A frame is attended to by itself; images stand in a batch, so that their number stays open. Qwen2.5-VL's windows are a mask: right, and
    not faster than all of a frame. Qwen3-VL's features of several depths stand side by side, `[images * tokens, hidden * depths]`.
    """

    def __init__(self, model: Any, grid: Grid) -> None:
        super().__init__()
        if grid.frames > 1 and hasattr(model.config.vision_config, "tokens_per_second"):
            raise YopoError(
                f"Graphs for videos, such as {grid}, know no frame rate, on which this model's positions depend.",
                "Export grids of pictures.",
            )
        if grid.frames > 1 and hasattr(model.visual, "deepstack_merger_list"):
            raise YopoError(f"Every frame of this model's videos is a picture of its own, {grid} has several.", "Export grids of pictures.")
        self.model = model
        tower, merge = model.visual, model.visual.spatial_merge_size
        sizes = torch.tensor([[grid.frames, grid.rows * merge, grid.columns * merge]])
        self.frames, self.rows_of_an_image = grid.frames, int(sizes.prod())
        self.example = (TRACED_IMAGES * self.rows_of_an_image, tower.patch_embed.proj.weight[0].numel())
        cosine, sine = tower.rotary_pos_emb(torch.zeros(1), get_vision_position_ids(sizes, merge))
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.places: Tensor | None
        self.shares: Tensor
        table = interpolation(tower, sizes) if hasattr(tower, "pos_embed") else (None, None)
        for name, part in zip(("places", "shares"), table, strict=True):
            self.register_buffer(name, part, persistent=False)
        self.windows: Tensor | None
        self.register_buffer("windows", same_window(tower, grid) if hasattr(tower, "window_size") else None, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tower: Any = self.model.visual
        whole = getattr(tower, "fullatt_block_indexes", range(len(tower.blocks)))
        # A convolution whose stride is its kernel is one product.
        rows = functional.linear(pixel_values, tower.patch_embed.proj.weight.flatten(1), tower.patch_embed.proj.bias)
        rows = rows.unflatten(0, (-1, self.rows_of_an_image))
        if self.places is not None:
            rows = rows + (tower.pos_embed(self.places) * self.shares.to(rows.dtype)[..., None]).sum(1)
        added = list(getattr(tower, "deepstack_visual_indexes", ()))
        features = {}
        for number, block in enumerate(tower.blocks):
            rows = rows + self._attention(block.attn, block.norm1(rows), None if number in whole else self.windows)
            rows = rows + block.mlp(block.norm2(rows))
            if number in added:
                features[added.index(number)] = tower.deepstack_merger_list[added.index(number)](rows.flatten(0, 1))
        return torch.cat([tower.merger(rows.flatten(0, 1)), *(features[depth] for depth in sorted(features))], -1)

    def _attention(self, attention: Any, rows: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = attention.qkv(rows).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, self.cosine, self.sine)
        query, key, value = (part.unflatten(1, (self.frames, -1)).flatten(0, 1).transpose(1, 2) for part in (query, key, value))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
        projected: Tensor = attention.proj(seen.transpose(1, 2).flatten(2).unflatten(0, (-1, self.frames)).flatten(1, 2))
        return projected


def interpolation(tower: Any, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Of Qwen3-VL's learned positions, those that each patch's is put together from and how much of each, `[patches, 4]`."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    sides = tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners
    found: tuple[Tensor, Tensor] = get_vision_interpolation_indices_and_weights(
        sizes, num_grid_per_side=sides[0], mode=sides[1], align_corners=sides[2], spatial_merge_size=tower.spatial_merge_size
    )
    return found


def same_window(tower: Any, grid: Grid) -> Tensor:
    """Whether two patches of a frame are in one window of Qwen2.5-VL's tower, `[patches, patches]`."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

    merge = tower.spatial_merge_size
    sizes = torch.tensor([[1, grid.rows * merge, grid.columns * merge]])
    order, ends = get_vision_window_index(sizes, merge, tower.window_size, tower.patch_size)
    patches = (order[:, None] * merge**2 + torch.arange(merge**2)).flatten()
    number = torch.empty_like(patches)
    number[patches] = torch.searchsorted(ends[1:].long(), torch.arange(len(patches)), right=True)
    return number[:, None] == number


def vision_model(
    checkpoint: Checkpoint, store: Store, grid: Grid, opset: int, compute: ir.DataType
) -> tuple[ir.Model, dict[str, ByteRange]]:
    """`pixel_values` to `image_features`, and the places of its weights by name: for `placed`, when the store is finished."""
    module = _module(checkpoint, grid, torch.float16 if compute == ir.DataType.FLOAT16 else torch.float32)
    images = torch.export.Dim("images")
    rows = images if module.rows_of_an_image == 1 else images * module.rows_of_an_image
    pixels = torch.zeros(module.example, dtype=next(module.parameters()).dtype)
    with _quiet(), torch.inference_mode():
        traced = torch.export.export(module, (pixels,), dynamic_shapes=({0: rows},), strict=False)
        program: Any = torch.onnx.export(traced, optimize=False, opset_version=opset, verbose=False)
    model: ir.Model = program.model
    _tidy(model)
    model.graph.inputs[0].name, model.graph.outputs[0].name = "pixel_values", "image_features"
    model.ir_version, model.producer_name, model.producer_version = IR_VERSIONS[opset], "yopo", None
    return model, _pieces(model, store)


def _module(checkpoint: Checkpoint, grid: Grid, dtype: torch.dtype) -> Any:
    """The tower in a module, its memory allocated and never touched; buffers hold what they hold."""
    model_class: Any = getattr(transformers, checkpoint.family.architecture)
    config = model_class.config_class.from_dict(native_config(checkpoint.family, checkpoint.config))
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    with no_init_weights():
        model = model_class._from_config(config, dtype=dtype).eval().model
    if hasattr(model, "image_newline"):
        return TiledPictures(model, checkpoint.family, native_config(checkpoint.family, checkpoint.config), grid).eval()
    if hasattr(model, "connector"):
        return Shuffled(model).eval()
    wrapper = Patches if hasattr(model, "visual") else Pictures
    return wrapper(model, grid).eval()


def _tidy(model: ir.Model) -> None:
    """No sources, paths or scopes of the machine that traced it; nothing twice, nothing unused."""
    passes = (
        common.ClearMetadataAndDocStringPass(),
        common.InlinePass(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    )
    Sequential(*passes)(model)
    produced = (output for node in model.graph for output in node.outputs)
    described = (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.initializers.values(), *produced)
    for part in described:
        part.metadata_props.clear()


def _pieces(model: ir.Model, store: Store) -> dict[str, ByteRange]:
    """Weights of the checkpoint among the initializers, by name; those of another type in the file are cast behind it."""
    found = {}
    for name, value in list(model.graph.initializers.items()):
        if name not in store.checkpoint.tensors:
            continue
        piece = store.place(Weight(name))
        found[name] = piece
        if piece.dtype != value.dtype:
            _cast_behind(model.graph, value, piece.dtype)
    return found


def _cast_behind(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """Let `value` be read in another type than its users take it in."""
    cast = ir.node("Cast", [value], {"to": value.dtype})
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = f"{value.name}.cast", value.type, value.shape
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)
    value.type = ir.TensorType(dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks to developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
