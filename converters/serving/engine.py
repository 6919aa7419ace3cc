"""What vLLM's configuration says about the engine."""

from typing import Any

import vllm

from .checks import EngineFacts

MAX_HEAD_SIZE = 512


def facts_of(config: Any, language_model: Any) -> EngineFacts:
    """The facts of a VllmConfig, and of the language model that was made by it: its class, and the attention backend it chose."""
    parallel, model = config.parallel_config, config.model_config
    multimodal, backend = model.multimodal_config, language_model.model.layers[0].self_attn.attn.attn_backend
    return EngineFacts(
        version=vllm.__version__,
        text_model=type(language_model).__name__,
        backend=backend.get_name(),
        head_sizes=tuple(size for size in range(1, MAX_HEAD_SIZE + 1) if backend.supports_head_size(size)),
        separate_cache_update=not backend.forward_includes_kv_cache_update,
        kv_cache_dtype=config.cache_config.cache_dtype,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        context_parallel_size=parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size,
        micro_batches=parallel.enable_dbo or parallel.ubatch_size > 0,
        lora=config.lora_config is not None,
        speculative=config.speculative_config is not None,
        kv_transfer=config.kv_transfer_config is not None,
        video_pruning=bool(multimodal is not None and multimodal.is_multimodal_pruning_enabled()),
    )
