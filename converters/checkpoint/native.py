"""A foreign checkpoint's dense model in memory, as transformers' own class."""

from typing import Any

import transformers

from .reader import Checkpoint
from .skeleton import native_config


def native_model(checkpoint: Checkpoint, dtype: Any) -> Any:
    """The model in evaluation mode, its tensors read by v5 name. Raises RuntimeError if not every one finds its place."""
    model_class: Any = getattr(transformers, checkpoint.family.architecture)
    config = model_class.config_class.from_dict(native_config(checkpoint.family, checkpoint.config))
    state = {name: checkpoint.read(name) for name in checkpoint.tensors}
    model, info = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    if left := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise RuntimeError(f"transformers did not load the model as it is: {left}")
    return model.eval()
