"""The forward pass that obeys a plan. These files are copied verbatim beside a converted model's weights."""

# Every family's; its own `modeling_<model type>.py` goes with them.
RUNTIME_FILES = (
    "plan.py",
    "stride.py",
    "layout.py",
    "cache.py",
    "token_split.py",
    "autotune.py",
    "chunking.py",
    "matmul.py",
    "attention.py",
    "text_attention.py",
    "full_attention.py",
    "attention_flex.py",
    "windows.py",
    "projection.py",
    "call.py",
    "layer_parts.py",
    "keys_values.py",
    "layer.py",
    "text_model.py",
    "mrope.py",
    "outputs.py",
    "visual_places.py",
    "switch.py",
    "dense_side.py",
)
