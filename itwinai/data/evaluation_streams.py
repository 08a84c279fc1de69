"""Evaluation over what has no indices to deal out: each batch once, and all workers in step.

The workers take the batches in turn if all of them iterate over the same ones; a dataset that divides itself keeps its
division. In both cases a worker whose batches have ended repeats one, with weight 0, for as long as others have any.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from itwinai.compat.lightning_dataloaders import ResettableIterator
from itwinai.data.undivided_loader import are_divided


class IterateInStep:
    """Makes the iterators of a loader, which give all workers equally many batches.

    Args:
        rank: of the worker.
        world_size: number of workers, W.
        gather: returns the objects of all workers, by rank.
        gather_tensors: stacks the tensors of all workers, which have one shape.
        device: of these tensors.
        iterate: makes an iterator of what makes the loader's own, such as `IterateShared`.

    Attributes:
        iterations: how often a loader has begun to iterate.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        gather: Callable[[Any], list[Any]],
        gather_tensors: Callable[[Tensor], Tensor],
        device: torch.device,
        iterate: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.gather = gather
        self.gather_tensors = gather_tensors
        self.device = device
        self.iterate = iterate
        self.iterations = 0
        self.repeated: set[int] = set()

    def __call__(self, make: Callable[[], Any]) -> InStep:
        """Return an iterator over the batches of this rank."""
        return InStep(make() if self.iterate is None else self.iterate(make), self)

    def weight_of(self, batch_index: int) -> float:
        """Return 0 for a batch that is given so that this worker keeps in step, and counts elsewhere."""
        return 0.0 if batch_index in self.repeated else 1.0

    def planned_weights(self, batch_index: int) -> list[float] | None:
        """Return None: nothing is known of a batch before it is there."""
        return None


class InStep(ResettableIterator):
    """Gives one worker its batches, and then repeats one until the others have finished.

    Whether all iterate over the same batches is found out by the first two, as in prediction.

    Args:
        batches: this worker's iterator over the whole dataset, or over its part.
        maker: knows the workers, and notes which batches are repeated.
    """

    def __init__(self, batches: Iterator[Any], maker: IterateInStep) -> None:
        super().__init__(batches)
        self.maker = maker
        self.begin()

    def begin(self) -> None:
        """Begin to iterate."""
        self.maker.iterations += 1
        self.maker.repeated = set()
        self._given: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._given is None:
            self._given = self._begin()
        return next(self._given)

    def _begin(self) -> Iterator[Any]:
        divided, first, batches = are_divided(self.batches, self.maker.gather)
        return self._divided(batches, first) if divided else self._by_turns(batches)

    def _by_turns(self, batches: Iterator[Any]) -> Iterator[Any]:
        for index in itertools.count():
            turn = list(itertools.islice(batches, self.maker.world_size))
            if not turn:
                return
            if self.maker.rank >= len(turn):
                self.maker.repeated.add(index)
            yield turn[self.maker.rank] if self.maker.rank < len(turn) else turn[0]

    def _divided(self, batches: Iterator[Any], first: list[Any]) -> Iterator[Any]:
        counts = self.maker.gather(len(first))
        if not min(counts):  # there is no batch that this worker could repeat
            found = self.maker.gather(first[:1])
            first = first or next(filter(None, found))
        last = first[:1]
        for index in itertools.count():
            own = list(itertools.islice(batches, 1))
            left = self.maker.gather_tensors(torch.full((1,), float(len(own)), device=self.maker.device))
            if not bool(left.any()):
                return
            if not own:
                self.maker.repeated.add(index)
            last = own or last
            yield last[0]
