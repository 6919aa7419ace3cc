"""Converted models in vLLM: a plugin that serves them with their plan obeyed.

vLLM loads `plugin.register` by the entry point `vllm.general_plugins`. `work` and `checks` need no vLLM; `plugin`, `engine`, `padded`,
`models` and `prefill` are imported by vLLM alone.
"""

VLLM = "0.32"
"""The minor version of vLLM that the plugin is written and tested for."""
