"""Prediction over an iterable dataset, which has no indices to deal out: the workers take its batches in turn."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from itwinai.data.rank_streams import RankStreams, SharedIterator

_ADDRESS = re.compile(r"\b0x[0-9a-f]+")


class Group(Protocol):
    """A strategy whose workers draw from streams of their own."""

    global_rank: int
    world_size: int

    @property
    def random_numbers(self) -> RankStreams:
        """The streams of this worker."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the objects of all workers, by rank."""


class IterateShared:
    """Makes the iterators of a loader of an iterable dataset.

    Args:
        group: the workers.
        has_processes: whether the loader fetches in processes; what these draw follows from where they begin.
        in_turns: whether each worker gets every W-th batch, unless the dataset divides itself.
    """

    def __init__(self, group: Any, has_processes: bool, in_turns: bool) -> None:
        self.group: Group = group
        self.has_processes = has_processes
        self.in_turns = in_turns

    def __call__(self, make: Callable[[], Any]) -> Any:
        """Return an iterator over the batches of this rank."""
        shared = SharedIterator(make, self.group.random_numbers)
        batches: Any = shared.iterator if self.has_processes else shared
        if not self.in_turns:
            return batches
        return Turns(batches, self.group.global_rank, self.group.world_size, self.group.gather_objects)


class Turns:
    """Gives one worker every W-th batch, if all workers iterate over the same ones.

    Whether they do is found out by the first two batches. Workers whose datasets give other batches on each rank have
    divided them, and each gets all of its own.

    Args:
        batches: this worker's iterator over the whole dataset, or over its part.
        rank: of the worker.
        world_size: number of workers.
        gather: returns the objects of all workers, by rank.
    """

    def __init__(self, batches: Iterator[Any], rank: int, world_size: int, gather: Callable[[Any], list[Any]]) -> None:
        self.batches = batches
        self.rank = rank
        self.world_size = world_size
        self.gather = gather
        self._turns: Iterator[Any] | None = None

    def __iter__(self) -> Turns:
        return self

    def __next__(self) -> Any:
        if self._turns is None:
            self._turns = self._begin()
        return next(self._turns)

    def _begin(self) -> Iterator[Any]:
        first = list(itertools.islice(self.batches, 2))
        prints = self.gather(content_print(first))
        batches = itertools.chain(first, self.batches)
        return itertools.islice(batches, self.rank, None, self.world_size) if len(set(prints)) == 1 else batches


def content_print(value: Any) -> str:
    """Return what tells the content of a batch from that of others, whatever it is made of."""
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
