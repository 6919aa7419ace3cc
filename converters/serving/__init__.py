"""Converted models in vLLM: a plugin that serves them with their plan obeyed.

vLLM loads `plugin.register` by the entry point `vllm.general_plugins`. `models`, `backend`, `cache` and `engine` import vLLM, and are
imported by it alone; the others need none.
"""

VLLM = "0.32"
"""The minor version of vLLM that the plugin is written and tested for."""
