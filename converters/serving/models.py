"""vLLM's models of the families that can be converted, with steps that have visual rows going another way.

`forward` runs uncompiled. A step of text alone goes through vLLM's own language model, compiled or not; so does the decode.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper

from ..errors import YopoError
from ..families import converted_family
from ..runtime.plan import Grid, from_json, normalise
from . import checks, engine, prefill
from .backend import of_text, pack, widen
from .projections import Reading, VisualProjections
from .slots import slotless_layers
from .work import layer_works, shown, strides

logger = init_logger(f"vllm.{__name__}")


@dataclass
class Counts:
    """What a served model has done so far: visual rows that went the way of the plan, steps that had some, and steps that had some and
    went the dense way (none, unless the plan was switched off)."""

    yopo_visual_rows: int = 0
    yopo_sparse_steps: int = 0
    yopo_dense_steps: int = 0


class Served:
    """Mixed into a model of vLLM, which comes after it: its language model obeys the plan of the config's section `yopo`.

    `obeying` switches the plan off, for comparisons: the dense model of the same weights.
    """

    language_model: Any
    deepstack_num_level = 0
    obeying = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        following: Any = super()
        following.__init__(vllm_config=vllm_config, prefix=prefix)
        section = vllm_config.model_config.hf_config.yopo or {}
        plan = normalise(from_json(section.get("plan")))
        checks.check_served(plan)
        family = converted_family(vllm_config.model_config.hf_config.to_dict())
        assert family is not None
        self.works = layer_works(plan, section.get("refitted", ()))
        self.strides = strides(self.works)
        self.counts = Counts()
        self.mask: Tensor | None = None
        self.shown: dict[int, Tensor] = {}
        layers = self.language_model.model.layers
        facts = engine.facts_of(vllm_config, self.language_model)
        checks.check_engine(facts)
        padded = checks.padded_head_size(self.works, plan.sizes.head_dim, facts)
        self.projections: dict[int, VisualProjections] = {}
        hiding = any(work.hides for work in self.works)
        whole = vllm_config.scheduler_config.disable_hybrid_kv_cache_manager
        slotless = () if whole else slotless_layers(self.works)
        for index, (layer, work) in enumerate(zip(layers, self.works, strict=True)):
            widen(layer.self_attn, padded, work, hiding, index in slotless, vllm_config)
            layer.visual = self.projections[index] = VisualProjections(work, plan.sizes, family.layer)
        self._reading = Reading(self.projections, self.works, plan.sizes.head_dim, family.text_prefix, family.layer)
        _whole_graphs_off(vllm_config)
        vllm_config.model_config.model_arch_config.head_size = padded
        logger.info("yopo: %s.", checks.summary(self.works, plan.sizes.head_dim, padded, len(slotless)))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        following: Any = super()
        loaded: set[str] = following.load_weights(self._reading.through(weights))
        for projections in self.projections.values():
            pack(projections)
        return loaded | {name for name, _ in self.named_parameters() if ".visual." in name and "language_model." in name}  # type: ignore[attr-defined]

    def grids(self, features: Any, **kwargs: Any) -> list[Grid]:
        """The grid of each picture, of its tiles, or of each video of a call, in order."""
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features of pictures and videos, with a column for each stride that marks what it shows: an engine may cut a picture
        anywhere, and forgets what of it was before."""
        following: Any = super()
        features = following.embed_multimodal(**kwargs)
        if not self.strides or not len(features):
            return features
        return tuple(_with_columns(item, grid, self.strides) for item, grid in zip(features, self.grids(features, **kwargs), strict=True))

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None) -> Tensor:
        """Embeddings of a step's rows; remembers until `forward` which of them are visual, and what each stride shows of these."""
        following: Any = super()
        if multimodal_embeddings is None or not len(multimodal_embeddings) or is_multimodal is None:
            self.mask = None
            text: Tensor = following.embed_input_ids(input_ids, is_multimodal=is_multimodal)
            return text
        self.mask = is_multimodal.cpu()
        features, self.shown = self._features(list(multimodal_embeddings))
        embeds: Tensor = following.embed_input_ids(input_ids, features, is_multimodal=is_multimodal)
        return embeds

    def _features(self, items: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """The features without their columns of strides, and these, booleans, by stride."""
        if not self.strides:
            return list(items), {}
        width = items[0].shape[-1] - len(self.strides)
        if width != self.config.get_text_config().hidden_size * (1 + self.deepstack_num_level):  # type: ignore[attr-defined]
            raise YopoError(
                "The vision tower's features came without their columns of strides, which the plan's read_stride needs.",
                "Switch off what calls the vision tower otherwise, such as graphs of the encoder.",
            )
        columns = torch.cat([item.flatten(0, -2)[:, width:] for item in items]) > 0.5
        return [item[..., :width] for item in items], dict(zip(self.strides, columns.unbind(1), strict=True))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states of a step's rows, those of visual rows zero where there are any."""
        visual, self.mask = self.mask, None
        context = get_forward_context()
        pruned = visual is not None and bool(context.attn_metadata) and inputs_embeds is not None
        if not pruned or not self.obeying:
            self.counts.yopo_dense_steps += pruned
            following: Any = super()
            return following.forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        assert visual is not None
        assert inputs_embeds is not None
        if not self.counts.yopo_sparse_steps:
            logger.info("yopo: the first step with visual tokens obeys the plan.")
        self.counts.yopo_sparse_steps += 1
        self.counts.yopo_visual_rows += int(visual.sum())
        return self._obeyed(visual, positions, inputs_embeds, context)

    def deepstack(self, visual: Tensor, rows: int) -> list[Tensor]:
        """What is added to visual rows after each of the first layers, of a step that takes so many rows; given once."""
        return []

    @torch.inference_mode()
    def _obeyed(self, visual: Tensor, positions: Tensor, embeds: Tensor, context: Any) -> Tensor:
        """Rows beyond those scheduled, which graphs of one size add, are left zero."""
        model, count = self.language_model.model, len(visual)
        deepstack = self.deepstack(visual, len(embeds))
        given = context.attn_metadata, context.slot_mapping, of_text, deepstack
        step = prefill.PrefillStep(visual, positions[..., :count], self.shown, *given)
        rows = prefill.run(model.layers, model.norm, self.works, self.projections, embeds[:count], step)
        return rows if count == len(embeds) else nn.functional.pad(rows, (0, 0, 0, len(embeds) - count))


def _whole_graphs_off(config: Any) -> None:
    """A graph of the whole model is replayed without `forward`, which must see visual rows: graphs of pieces are kept."""
    from vllm.config import CUDAGraphMode

    compilation = config.compilation_config
    if compilation.cudagraph_mode is not None and compilation.cudagraph_mode.has_full_cudagraphs():
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
        logger.info("yopo: CUDA graphs are of pieces of the model, not of all of it.")


def _with_columns(features: Tensor, grid: Grid, strides: Sequence[int]) -> Tensor:
    """Features of a picture, of tiles of one grid, or of a video `[tokens, hidden]`, followed by one for each stride: 1 where it
    shows the token."""
    rows = features.flatten(0, -2)
    if len(rows) % grid.tokens:
        raise YopoError(f"There are {len(rows)} features for grids of {grid}.", "Pass pictures, not features of another size.")
    columns = [torch.tensor(shown(grid, stride), device=rows.device, dtype=rows.dtype) for stride in strides]
    return torch.cat([rows, torch.stack(columns, 1).repeat(len(rows) // grid.tokens, 1)], 1)


class OneGrid(Served):
    """Pictures and tiles all have the grid of the vision tower."""

    def grids(self, features: Any, **kwargs: Any) -> list[Grid]:
        config = self.config.to_dict()  # type: ignore[attr-defined]
        family = converted_family(config)
        assert family is not None
        return [family.grid(config | {"model_type": family.model_type})] * len(features)


class ServedAnyGrid(Served):
    """Every picture and every video has a grid of its own, counted in patches, of which the vision tower merges squares."""

    def grids(self, features: Any, **kwargs: Any) -> list[Grid]:
        merged = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        kinds = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
        grids = [grid for name in kwargs if name in kinds for grid in torch.as_tensor(kwargs[kinds[name]]).tolist()]
        return [Grid(rows // merged, columns // merged, frames) for frames, rows, columns in grids]


class ServedLlava(OneGrid, LlavaForConditionalGeneration):
    """LLaVA-1.5. transformers saves the vision tower without a level of names that vLLM has."""

    hf_to_vllm_mapper = (
        WeightsMapper(orig_to_new_regex={re.compile(r"^model\.vision_tower\.(?!vision_model\.)"): "model.vision_tower.vision_model."})
        | LlavaForConditionalGeneration.hf_to_vllm_mapper
    )


class ServedQwen2VL(ServedAnyGrid, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


class ServedQwen25VL(ServedAnyGrid, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""


class ServedQwen3VL(ServedAnyGrid, Qwen3VLForConditionalGeneration):
    """Qwen3-VL. Frames of a video are pictures of their own."""

    def grids(self, features: Any, **kwargs: Any) -> list[Grid]:
        return [replace(grid, frames=1) for grid in super().grids(features, **kwargs)]

    def deepstack(self, visual: Tensor, rows: int) -> list[Tensor]:
        levels = [level[: len(visual)][visual.to(level.device)] for level in self.deepstack_input_embeds]
        self._clear_deepstack_input_embeds(rows)
        return levels


class ServedInternVL(OneGrid, InternS1ForConditionalGeneration):
    """InternVL as transformers has it."""
