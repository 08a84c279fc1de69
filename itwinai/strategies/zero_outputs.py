"""What layers return, for the hooks of ZeRO stage 3: these find tensors in tensors, lists, tuples and dictionaries."""

from __future__ import annotations

import copy
import dataclasses
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
        tensors = _tensors(output)
        returned = hook(module, inputs, list(tensors.values()))
        if returned is None or not tensors:
            return None
        return _with(output, dict(zip(tensors, returned, strict=True)))

    # By it the hook is known as one of the engine when all are taken off.
    tolerating.__module__ = hook.__module__
    return tolerating


def _tensors(output: Any) -> dict[str, Tensor]:
    """Return the attributes of an object that are tensors."""
    if dataclasses.is_dataclass(output):
        names = [field.name for field in dataclasses.fields(output)]
    else:
        slots = [getattr(cls, "__slots__", ()) for cls in type(output).__mro__]
        names = [*getattr(output, "__dict__", ()), *(name for slot in slots for name in _names(slot))]
    values = {name: getattr(output, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _with(output: Any, tensors: dict[str, Tensor]) -> Any:
    """Return an object like another, with other tensors."""
    changed = copy.copy(output)
    for name, tensor in tensors.items():
        object.__setattr__(changed, name, tensor)  # frozen dataclasses too
    return changed
