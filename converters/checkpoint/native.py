"""Models in memory whose files transformers does not read as they are: foreign layouts, and quantised weights as numbers."""

from importlib import import_module
from typing import Any

import transformers
from torch import Tensor

from .. import runtime
from .reader import Checkpoint, Converted
from .skeleton import native_config


def native_model(checkpoint: Checkpoint, dtype: Any) -> Any:
    """The model in evaluation mode, its tensors read by v5 name. Raises RuntimeError if not every one finds its place."""
    model_class: Any = getattr(transformers, checkpoint.family.architecture)
    config = native_config(checkpoint.family, checkpoint.config)
    return _filled(model_class, config, {name: checkpoint.read(name) for name in checkpoint.tensors}, dtype)


def converted_model(converted: Converted, dtype: Any) -> Any:
    """A converted model with quantised weights, which are read as the numbers that they stand for."""
    module = import_module(f"{runtime.__name__}.modeling_{converted.family.yopo_model_type}")
    checkpoint = converted.open_tensors()
    state = {name: checkpoint.read(name) for name in checkpoint.stored}
    return _filled(getattr(module, converted.family.yopo_architecture), converted.config, state, dtype)


def _filled(model_class: Any, config: dict[str, Any], state: dict[str, Tensor], dtype: Any) -> Any:
    config = model_class.config_class.from_dict({key: value for key, value in config.items() if key != "quantization_config"})
    model, info = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    if left := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise RuntimeError(f"transformers did not load the model as it is: {left}")
    return model.eval()
