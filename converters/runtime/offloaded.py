"""Weights that accelerate keeps elsewhere, in the machine's memory or on disk, and brings to where a module runs whenever it is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HOOK, FORWARD, FORWARD_BEFORE = "_hf_hook", "forward", "_old_forward"
"""Where accelerate keeps a module's hook, what it puts in the place of its forward, and what was there."""


def is_dispatched(module: Any) -> bool:
    """Whether accelerate has a hand in where a module's weights are."""
    return any(hasattr(one, HOOK) for one in module.modules())


@contextmanager
def at_hand(*modules: Any) -> Iterator[None]:
    """Have all weights of these modules where they run, and accelerate's hooks away, until the block ends.

    So they are brought there once, however often they are used in it. Does nothing for modules without such hooks.
    """
    hooked = [(one, one._hf_hook, vars(one)[FORWARD]) for module in modules for one in module.modules() if hasattr(one, HOOK)]
    try:
        for one, hook, _ in hooked:
            hook.pre_forward(one)
            delattr(one, HOOK)
            _put_back_forward(one)
        yield
    finally:
        for one, hook, forward in hooked:
            if not hasattr(one, HOOK):
                one._hf_hook, one.forward = hook, forward
                hook.post_forward(one, None)


def _put_back_forward(module: Any) -> None:
    """Call a module as its class does, or by what was there before accelerate's hook."""
    before = getattr(module, FORWARD_BEFORE)
    if getattr(before, "__func__", None) is type(module).forward:
        delattr(module, FORWARD)
    else:
        module.forward = before
