"""The forward pass that obeys a plan. These files are copied verbatim beside a converted model's weights."""

# Every family's; its own `modeling_<model type>.py` goes with them.
RUNTIME_FILES = (
    "plan.py",
    "lattice.py",
    "layout.py",
    "cache.py",
    "streams.py",
    "flex.py",
    "attention.py",
    "choice.py",
    "pieces.py",
    "products.py",
    "split_linear.py",
    "text_model.py",
    "mrope.py",
    "dense_side.py",
)
