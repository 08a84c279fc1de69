"""What layers return, for the hooks of ZeRO stage 3: these find tensors in tensors, lists, tuples and dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

KNOWN = (Tensor, list, tuple, dict)


def tolerant(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Let a forward hook of DeepSpeed find the tensors in any object, and not fail at objects without attributes.

    It gathers parameters for backward upon the gradients of these tensors.
    """

    def tolerating(module: Any, inputs: Any, output: Any) -> Any:
        if output is None or isinstance(output, KNOWN):
            return hook(module, inputs, output)
        attributes = _attributes(output)
        tensors = {name: value for name, value in attributes.items() if isinstance(value, Tensor)}
        returned = hook(module, inputs, list(tensors.values()))
        if returned is None or not tensors:
            return None
        return _made_of(type(output), {**attributes, **dict(zip(tensors, returned, strict=True))})

    # By it the hook is known as one of the engine when all are taken off.
    tolerating.__module__ = hook.__module__
    return tolerating


def _attributes(output: Any) -> dict[str, Any]:
    """Return the attributes that an object itself has, those in slots included."""
    slots = [name for cls in type(output).__mro__ for name in _names(getattr(cls, "__slots__", ()))]
    return {
        name: getattr(output, name)
        for name in (*slots, *getattr(output, "__dict__", ()))
        if not name.startswith("__") and hasattr(output, name)
    }


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _made_of(cls: type, attributes: dict[str, Any]) -> Any:
    """Return an object with these attributes, without running its class' code: it may be frozen."""
    made: Any = object.__new__(cls)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made
