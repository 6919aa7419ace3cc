"""Weights in, pruned weights out. Importing this makes transformers' Auto classes load converted models without `trust_remote_code`."""

import sys

# The command line answers `--help` without torch; it registers when it loads a model.
if "yopo_cli" not in sys.modules:
    from .runtime import registration as registration
