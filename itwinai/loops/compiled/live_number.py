"""Numbers that change from step to step, such as ``self.global_step``, in a trace that outlives the step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from itwinai.compat import torch_compile

Note = Callable[[str, Callable[[], Any], Any], None]
"""Takes what was decided by a number, how to decide it again, and the decision."""


class Inputs:
    """The numbers that a graph is given at each step, each in a tensor without dimensions."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def add(self, read: Callable[[], float], device: torch.device | None = None) -> Tensor:
        """Return a tensor that will hold what ``read`` returns then."""
        slot = Slot(read, device)
        self.slots.append(slot)
        return slot.tensor


class Slot:
    """A tensor with a number of Python's.

    Args:
        read: returns the number.
        device: where the tensor is.
    """

    def __init__(self, read: Callable[[], float], device: torch.device | None = None) -> None:
        self.read = read
        self.value = read()
        kind = torch.int64 if isinstance(self.value, int) else torch.float64
        with torch_compile.outside_of_trace():
            self.tensor = torch.tensor(self.value, dtype=kind, device=device)

    def refresh(self) -> None:
        """Write the number as it is now."""
        value = self.read()
        if value != self.value:
            self.tensor.fill_(value)
            self.value = value


class LiveNumber:
    """Stands for a number of Python's while a step is traced.

    Arithmetic with other numbers is done again at each step, by Python; arithmetic with tensors becomes part of the
    graph. What is decided by the number (comparisons, conversions to a plain one) is noted, so that the graph is used
    only where it would be decided alike.

    Args:
        about: what it is, for people.
        read: returns the number as it is now.
        note: is told of decisions.
        as_tensor: makes a tensor of the graph of a number like this one.
    """

    def __init__(
        self, about: str, read: Callable[[], Any], note: Note, as_tensor: Callable[[Callable[[], float]], Tensor]
    ) -> None:
        self.about, self.read, self.note, self.as_tensor = about, read, note, as_tensor

    def _derived(self, about: str, read: Callable[[], Any]) -> LiveNumber:
        return LiveNumber(about, read, self.note, self.as_tensor)

    def _decided(self, what: str, decide: Callable[[], Any]) -> Any:
        decision = decide()
        self.note(f"{what} of {self.about}", decide, decision)
        return decision

    def settle(self) -> Any:
        """Return the plain number; the graph then holds for this one only."""
        return self._decided("the value", self.read)

    def tensor_for(self, other: Tensor) -> Tensor:
        """Return the number as a tensor that does to another what a plain number does."""
        value = self.as_tensor(self.read)
        if other.is_floating_point():  # and not what tensors of two types become
            return value.to(torch.float32 if other.dtype in (torch.float16, torch.bfloat16) else other.dtype)
        return value.to(torch.get_default_dtype()) if value.is_floating_point() else value

    def __bool__(self) -> bool:
        return bool(self._decided("the truth", lambda: bool(self.read())))

    def __int__(self) -> int:
        return int(self.settle())

    def __float__(self) -> float:
        return float(self.settle())

    def __index__(self) -> int:
        return operator.index(self.settle())

    def __hash__(self) -> int:
        return hash(self.settle())

    def __format__(self, spec: str) -> str:
        return format(self.settle(), spec)

    def __repr__(self) -> str:
        return repr(self.settle())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next((value for value in args if isinstance(value, Tensor)), None)

        def convert(value: Any) -> Any:
            if not isinstance(value, LiveNumber):
                return value
            return value.settle() if first is None else value.tensor_for(first)

        return func(*map(convert, args), **{name: convert(value) for name, value in (kwargs or {}).items()})


def _plain(value: Any) -> Callable[[], Any]:
    return value.read if isinstance(value, LiveNumber) else lambda: value


def _arithmetic(name: str, swapped: bool) -> Callable[[LiveNumber, Any], Any]:
    function = getattr(operator, name)

    def method(self: LiveNumber, other: Any) -> Any:
        if isinstance(other, Tensor):
            number = self.tensor_for(other)
            result = function(other, number) if swapped else function(number, other)
            return result.to(other.dtype) if other.dtype in (torch.float16, torch.bfloat16) else result
        if not isinstance(other, (int, float, LiveNumber)):
            return NotImplemented
        own, others = self.read, _plain(other)
        return self._derived(
            f"a {name} of {self.about}",
            (lambda: function(others(), own())) if swapped else (lambda: function(own(), others())),
        )

    return method


def _comparison(name: str) -> Callable[[LiveNumber, Any], Any]:
    function = getattr(operator, name)

    def method(self: LiveNumber, other: Any) -> Any:
        if isinstance(other, Tensor):
            return function(self.tensor_for(other), other)
        own, others = self.read, _plain(other)
        return self._decided(f"a comparison ({name})", lambda: function(own(), others()))

    return method


def _unary(name: str) -> Callable[[LiveNumber], LiveNumber]:
    function = getattr(operator, name)

    def method(self: LiveNumber) -> LiveNumber:
        read = self.read
        return self._derived(self.about, lambda: function(read()))

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(LiveNumber, f"__{_name}__", _arithmetic(_name, False))
    setattr(LiveNumber, f"__r{_name}__", _arithmetic(_name, True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(LiveNumber, f"__{_name}__", _comparison(_name))
for _name in ("neg", "pos", "abs"):
    setattr(LiveNumber, f"__{_name}__", _unary(_name))
