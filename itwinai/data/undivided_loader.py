"""Prediction over an iterable dataset, which has no indices to deal out: the workers take its batches in turn."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from itwinai.data.rank_streams import RankStreams, SharedIterator
from itwinai.data.weights import StepWeights
from itwinai.drawn import Done, Drawn, Recent

_ADDRESS = re.compile(r"\b0x[0-9a-f]+")


class DividesBatches(Protocol):
    """What loaders need of a strategy: its workers draw from streams of their own, and divide each global batch."""

    global_rank: int
    world_size: int

    @property
    def random_numbers(self) -> RankStreams:
        """The streams of this worker."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the objects of all workers, by rank."""

    def weigh_batches(self, weights: StepWeights) -> None:
        """Weigh this worker's loss so that unequal parts of a global batch count by their samples."""


class IterateShared:
    """Makes the iterators of a loader of an iterable dataset.

    Args:
        group: the strategy of the workers.
        has_processes: whether the loader fetches in processes; what these draw follows from where they begin.
    """

    def __init__(self, group: DividesBatches, has_processes: bool) -> None:
        self.group = group
        self.has_processes = has_processes

    def __call__(self, make: Callable[[], Any]) -> Any:
        """Return an iterator over the batches of this rank."""
        shared = SharedIterator(make, self.group.random_numbers)
        return shared.iterator if self.has_processes else shared


class IterateInTurns:
    """Makes the iterators of a prediction over what has no indices: each worker gets every W-th batch.

    Args:
        rank: of the worker.
        world_size: number of workers, W.
        gather: returns the objects of all workers, by rank.
        iterate: makes an iterator of what makes the loader's own, such as `IterateShared`.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        gather: Callable[[Any], list[Any]],
        iterate: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.gather = gather
        self.iterate = iterate
        self.turns: Turns | None = None
        self._left_out: tuple[Done, int | None] = Done(), None

    def leave_out(self, done: Done, first: int | None) -> None:
        """Leave out batches by their numbers.

        Args:
            done: numbers of batches that are left out.
            first: how many batches there are at most; None for all.
        """
        self._left_out = done, first

    def __call__(self, make: Callable[[], Any]) -> Any:
        """Return an iterator over the batches of this rank."""
        batches = make() if self.iterate is None else self.iterate(make)
        self.turns = Turns(batches, self.rank, self.world_size, self.gather, *self._left_out)
        return self.turns

    def drawn(self, number: int) -> Drawn:
        """Return which batch came as the given one to this worker."""
        assert self.turns is not None
        return Drawn("rank" if self.turns.divided else "batch", self.turns.numbers[number])


class IteratedLoader:
    """A loader that is not a DataLoader, whose iterators are made by something of ours.

    Args:
        loader: the user's.
        iterate: makes its iterators.
    """

    def __init__(self, loader: Any, iterate: Callable[[Callable[[], Any]], Any]) -> None:
        self.loader = loader
        self.iterate = iterate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "loader" not in vars(self):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate(lambda: iter(self.loader))


class SizedIteratedLoader(IteratedLoader):
    """One with a length: that of the user's, as it may turn out that each worker has its own batches."""

    def __len__(self) -> int:
        return len(self.loader)


def iterated(loader: Any, iterate: Callable[[Callable[[], Any]], Any]) -> IteratedLoader:
    """Return a loader that is not a DataLoader with other iterators, and with a length if it has one."""
    return (SizedIteratedLoader if isinstance(loader, Sized) else IteratedLoader)(loader, iterate)


def are_divided(batches: Iterator[Any], gather: Callable[[Any], list[Any]]) -> tuple[bool, list[Any], Iterator[Any]]:
    """Find out by the first two batches whether each worker has batches of its own; all workers have to call it.

    Args:
        batches: this worker's.
        gather: returns the objects of all workers, by rank.

    Returns:
        Whether they are divided, the first two, and all batches from the first one on.
    """
    first = list(itertools.islice(batches, 2))
    return len(set(gather(content_print(first)))) > 1, first, itertools.chain(first, batches)


class Turns:
    """Gives one worker every W-th batch, if all workers iterate over the same ones.

    Whether they do is found out by the first two batches. Workers whose datasets give other batches on each rank have
    divided them, and each gets all of its own.

    Args:
        batches: this worker's iterator over the whole dataset, or over its part.
        rank: of the worker.
        world_size: number of workers.
        gather: returns the objects of all workers, by rank.
        done: numbers of batches that are left out.
        first: how many batches there are at most; None for all.

    Attributes:
        divided: whether each worker has batches of its own; known once the first was asked for.
        numbers: of the batches that this worker got, as one process would count them.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        rank: int,
        world_size: int,
        gather: Callable[[Any], list[Any]],
        done: Done | None = None,
        first: int | None = None,
    ) -> None:
        self.batches = batches
        self.rank = rank
        self.world_size = world_size
        self.gather = gather
        self.done = Done() if done is None else done
        self.first = first
        self.divided = False
        self.numbers = Recent()
        self._turns: Iterator[tuple[int, Any]] | None = None

    def __iter__(self) -> Turns:
        return self

    def __next__(self) -> Any:
        if self._turns is None:
            self._turns = self._begin()
        number, batch = next(self._turns)
        self.numbers.append(number)
        return batch

    def _begin(self) -> Iterator[tuple[int, Any]]:
        if self.world_size == 1:
            return self._missing(enumerate(self.batches))
        self.divided, _, batches = are_divided(self.batches, self.gather)
        if self.divided:
            return self._missing(zip(itertools.count(self.rank, self.world_size), batches, strict=False))
        return itertools.islice(self._missing(enumerate(batches)), self.rank, None, self.world_size)

    def _missing(self, numbered: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for number, batch in numbered:
            if self.first is not None and number >= self.first:
                return
            if number not in self.done:
                yield number, batch


def content_print(value: Any) -> str:
    """Return a fingerprint of the content of a batch of any type."""
    digest = hashlib.sha256()
    _add(digest, value, set())
    return digest.hexdigest()


def _add(digest: Any, value: Any, within: set[int]) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    digest.update(type(value).__name__.encode())
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(repr((value.shape, value.dtype)).encode() + np.ascontiguousarray(value).tobytes())
        return
    inner: list[Any] | None = None
    if isinstance(value, dict):
        inner = list(itertools.chain(*value.items()))
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    elif hasattr(value, "__dict__"):
        inner = list(itertools.chain(*vars(value).items()))
    if inner is None:
        digest.update(_ADDRESS.sub("", repr(value)).encode())
    elif id(value) not in within:
        for one in inner:
            _add(digest, one, within | {id(value)})
