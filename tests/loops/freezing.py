"""Turn what a run leaves into plain data that is equal only if it is the same bit for bit, and name differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.loops.optimization.closure import AbstractClosure
from torch import Tensor


class Bits(NamedTuple):
    """A tensor by its bytes, so that NaN equals NaN and 0.0 does not equal -0.0."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    requires_grad: bool
    data: bytes

    def __repr__(self) -> str:
        values = torch.frombuffer(bytearray(self.data), dtype=self.dtype).tolist() if self.data else []
        return f"tensor({values}, {self.dtype}, shape={self.shape}, requires_grad={self.requires_grad})"


def bits(tensor: Tensor) -> Bits:
    """Return what makes a tensor the one it is."""
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return Bits(tensor.dtype, tuple(tensor.shape), tensor.requires_grad, plain.numpy().tobytes())


def freeze(value: Any) -> Any:
    """Return plain data that stands for a value, with the types of containers and the order of keys."""
    if isinstance(value, Tensor):
        return bits(value)
    if isinstance(value, float):
        return ("float", value.hex())
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return (type(value).__name__, value)
    if isinstance(value, Mapping):
        return (type(value).__name__, [(freeze(key), freeze(item)) for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [freeze(item) for item in value])
    if isinstance(value, BaseException):
        return (type(value).__name__, str(value))
    if isinstance(value, AbstractClosure):
        return "closure"
    return type(value).__name__


def difference(left: Any, right: Any, path: str = "") -> str | None:
    """Return where two frozen values differ first, and how; None if they are equal."""
    if left == right:
        return None
    if type(left) is type(right) and isinstance(left, (list, tuple)) and not isinstance(left, Bits):
        for index, (one, other) in enumerate(zip(left, right, strict=False)):
            found = difference(one, other, f"{path}[{index}]")
            if found is not None:
                return found
        return f"{path}: {len(left)} items against {len(right)}: {left[len(right) :]!r} against {right[len(left) :]!r}"
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return next(found for key in left if (found := difference(left[key], right[key], f"{path}.{key}")) is not None)
    return f"{path}: {left!r} against {right!r}"
