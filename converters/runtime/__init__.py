"""The forward pass that obeys a plan. These files are copied verbatim beside a converted model's weights."""

# Every family's; its own `modeling_<model type>.py` goes with them.
RUNTIME_FILES = (
    "plan.py",
    "stride.py",
    "layout.py",
    "cache.py",
    "token_split.py",
    "attention_flex.py",
    "attention.py",
    "autotune.py",
    "chunking.py",
    "matmul.py",
    "split_linear.py",
    "text_model.py",
    "mrope.py",
    "outputs.py",
    "visual_places.py",
    "switch.py",
    "dense_side.py",
)
