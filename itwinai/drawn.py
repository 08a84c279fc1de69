"""Which batch of which samples a loader of a prediction has just given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Order: TypeAlias = Literal["sample", "draw", "batch", "rank"]
"""What the order of predictions follows: the indices of samples; indices that each stand for a batch; the numbers of
batches that the workers take in turn; or those of batches that the user divides among the ranks, which mean something
else with another number of ranks."""


@dataclass(frozen=True)
class Drawn:
    """A batch of a prediction.

    Attributes:
        order: what its place in the order follows from.
        number: of the batch, as one process would count them; or the index that stands for it.
        indices: of its samples in the dataset, if it has any.
    """

    order: Order
    number: int
    indices: Sequence[int] | np.ndarray[Any, Any] | None = None


class Recent:
    """What was drawn ahead of its use, by number; what lies before the number that was asked for last is dropped."""

    def __init__(self) -> None:
        self._first = 0
        self._drawn: deque[Any] = deque()

    def append(self, one: Any) -> None:
        """Add what was drawn next."""
        self._drawn.append(one)

    def __getitem__(self, number: int) -> Any:
        while self._first < number:
            self._drawn.popleft()
            self._first += 1
        return self._drawn[0]

    def __bool__(self) -> bool:
        return True


class Done:
    """A set of numbers that are predicted already, a byte for each."""

    def __init__(self, numbers: np.ndarray[Any, Any] | Iterable[int] = ()) -> None:
        self.numbers: np.ndarray[Any, Any] = np.asarray(numbers, dtype=np.int64)
        self._mask = np.zeros(int(self.numbers.max()) + 1 if len(self.numbers) else 0, bool)
        self._mask[self.numbers[self.numbers >= 0]] = True

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, (int, np.integer)) and bool(0 <= number < len(self._mask) and self._mask[number])


def drawn_as(value: Any, number: int) -> Drawn:
    """Return the batch that a sampler has drawn, by an index or several.

    Args:
        value: what the sampler has given.
        number: of the batch.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int):
        return Drawn("draw", value)
    if isinstance(value, (list, tuple)):
        try:
            indices = np.asarray(value)
        except ValueError:  # lists of unequal lengths
            return Drawn("rank", number)
        if indices.ndim == 1 and indices.dtype.kind in "iu":
            return Drawn("sample", number, indices)
    return Drawn("rank", number)
