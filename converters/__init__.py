"""Weights in, pruned weights out. Once this is imported, transformers' Auto classes load converted models without `trust_remote_code`.

Registering needs transformers and torch, which `yopo --help` does not: it waits until the Auto classes are imported.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto.configuration_auto"


class _Registration(MetaPathFinder):
    """Registers the runtime's classes right after the Auto classes have been executed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module("converters.runtime.registration")

            loader.exec_module = execute_and_register
        return spec


if _AUTO in sys.modules:
    import_module("converters.runtime.registration")
else:
    sys.meta_path.insert(0, _Registration())
