"""What config.json may say where this project reads it: types and ranges; whatever else is in it is transformers' to judge."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Width = Annotated[int, Field(ge=1, le=1 << 20)]
Heads = Annotated[int, Field(ge=1, le=1 << 14)]
Depth = Annotated[int, Field(ge=1, le=1 << 12)]
Side = Annotated[int, Field(ge=1, le=1 << 14)]
Positions = Annotated[int, Field(ge=1, le=1 << 32)]
Token = Annotated[int, Field(ge=-1, le=1 << 26)]
Small = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(max_length=1000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelPart(BaseModel):
    """The words that language models and vision towers share."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model_type: Name | None = None
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    embed_dim: Width | None = None
    num_hidden_layers: Depth | None = None
    depth: Depth | None = None
    num_attention_heads: Heads | None = None
    num_heads: Heads | None = None
    num_key_value_heads: Heads | None = None
    head_dim: Heads | None = None
    vocab_size: Annotated[int, Field(ge=1, le=1 << 26)] | None = None
    max_position_embeddings: Positions | None = None
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    patch_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    spatial_merge_size: Side | None = None
    temporal_patch_size: Side | None = None
    num_channels: Side | None = None
    rms_norm_eps: Small | None = None
    layer_norm_eps: Small | None = None
    hidden_act: Name | None = None
    sliding_window: Positions | None = None
    tie_word_embeddings: bool | None = None
    rope_scaling: dict[str, Any] | None = None
    torch_dtype: Name | None = None
    dtype: Name | None = None


class Quantised(BaseModel):
    """What is said of weights that are quantised."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class QuantisedNumbers(Quantised):
    num_bits: int | None = None
    type: Name | None = None
    strategy: Name | None = None


class QuantisedGroup(Quantised):
    weights: QuantisedNumbers | None = None
    input_activations: QuantisedNumbers | None = None


class Quantisation(Quantised):
    quant_method: Name | None = None
    format: Name | None = None
    config_groups: dict[str, QuantisedGroup] | None = None


class BlockState(Quantised):
    """What bitsandbytes writes beside a weight of four bits."""

    shape: Annotated[list[Width], Field(min_length=2, max_length=2)]
    blocksize: Width
    nested_blocksize: Width = 1
    nested_offset: float = 0.0


class Config(ModelPart):
    """config.json of a vision-language model, in any layout that is read; of a converted one, its section is checked when it is opened."""

    architectures: list[Name] | None = None
    text_config: ModelPart | None = None
    vision_config: ModelPart | None = None
    llm_config: ModelPart | None = None
    quantization_config: Quantisation | None = None
    auto_map: dict[str, Any] | None = None
    image_token_index: Token | None = None
    image_token_id: Token | None = None
    video_token_id: Token | None = None
    image_seq_length: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    downsample_ratio: Share | None = None
    force_image_size: Side | None = None
    select_layer: Annotated[int, Field(ge=-(1 << 12), le=1 << 12)] | None = None
    mm_vision_tower: Name | None = None
    mm_vision_select_layer: Annotated[int, Field(ge=-(1 << 12), le=1 << 12)] | None = None
    yopo: dict[str, Any] | None = None


class Closed(BaseModel):
    """What this project alone writes: no other key, no other type."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Base(Closed):
    name: Name
    repository: Name | None
    revision: Name | None
    fingerprint: Sha256


class Budget(Closed):
    asked: Share | None
    reached: Annotated[float, Field(ge=0)]


class CompensationRecord(Closed):
    method: Name
    samples: Annotated[int, Field(ge=1)] | None
    bytes: Annotated[int, Field(ge=0)]


class Divergence(Closed):
    before: float
    after: float


class HealingRecord(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    tune: Name
    kept: bool
    divergence: Divergence
    steps: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=0)]
    held_out: Annotated[int, Field(ge=0)]
    data: dict[str, Any]
    command: str


class Section(Closed):
    """The `yopo` section. The plan in it is read by `runtime.plan`, which judges it."""

    version: Name
    plan: dict[str, Any]
    attention: dict[str, Any]
    budget: Budget
    recipe: Name | None
    calibration: dict[str, Any] | None
    base: Base
    compensation: CompensationRecord | None
    refitted: list[Annotated[int, Field(ge=0, le=1 << 12)]]
    base_projector: bool
    healing: list[HealingRecord]
    files: Sha256
