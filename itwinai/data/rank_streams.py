"""Random numbers of the ranks: what all draw alike, and what each draws by itself.

Until training begins all ranks draw from the run's own stream, so that what `setup` or a model's constructor draws is
the same everywhere. Then rank 0 continues with it, as one process would, and the others begin their own streams. Where
they have to agree later on (orders of samples, hooks that make loaders, iterable datasets) they draw from rank 0's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from itwinai.compat import lightning_dataloaders, lightning_trainer
from itwinai.data.rng_state import RandomStates, same_states


def seed_of_rank(states: RandomStates, rank: int) -> int:
    """Return the seed of a rank's own stream, which begins where rank 0 is in these states."""
    digest = hashlib.sha256(states["torch"].numpy().tobytes())
    digest.update(repr((rank, states["python"])).encode())
    if "numpy" in states:
        digest.update(np.asarray(states["numpy"][1]).tobytes())
        digest.update(repr(states["numpy"][2:]).encode())
    return int.from_bytes(digest.digest()[:8], "big")


def seed_generators(seed: int) -> None:
    """Seed torch's, numpy's and Python's global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class RankStreams:
    """The streams of random numbers of one worker.

    Args:
        rank: of the worker.
        world_size: number of workers.
        broadcast: sends an object from rank 0 to all workers.

    Attributes:
        begun: whether this worker draws from a stream of its own.
        restarts: how often the states were set to those of a checkpoint.
    """

    def __init__(self, rank: int, world_size: int, broadcast: Callable[[Any], Any]) -> None:
        self.rank = rank
        self.world_size = world_size
        self.broadcast = broadcast
        self.begun = False
        self.restarts = 0

    def begin(self) -> None:
        """Let each rank but the first draw from a stream of its own; all workers have to call it."""
        if self.begun or self.world_size == 1:
            return
        states = self.states_of_rank_0()
        self.begun = True
        if self.rank:
            seed_generators(seed_of_rank(states, self.rank))

    def end(self) -> None:
        """Let all ranks draw from rank 0's stream again; all workers have to call it."""
        if not self.begun:
            return
        states = self.states_of_rank_0()
        self.begun = False
        if self.rank:
            lightning_trainer.set_rng_states(states)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Draw from rank 0's stream inside the context; all workers have to call this."""
        if not self.begun:
            yield
            return
        own = lightning_trainer.collect_rng_states(include_cuda=False)
        states = self.broadcast(own)
        if self.rank:
            lightning_trainer.set_rng_states(states)
        try:
            yield
        finally:
            if self.rank:
                lightning_trainer.set_rng_states(own)

    def states_of_rank_0(self) -> RandomStates:
        """Return the states that rank 0's generators are in; all workers have to call it."""
        states: RandomStates = self.broadcast(lightning_trainer.collect_rng_states(include_cuda=False))
        return states


class SharedIterator:
    """Iterates over a loader in one stream of random numbers on all ranks, independent of what else each of them draws.

    The stream begins where rank 0 is when the first batch is fetched. Rank 0 continues in it as long as nothing else
    draws there, as one process would.

    Args:
        make: makes the loader's iterator.
        streams: of this worker.
    """

    def __init__(self, make: Callable[[], Any], streams: RankStreams) -> None:
        self.streams = streams
        self._states = streams.states_of_rank_0()
        self._begun_at: int | None = None
        self.iterator = self._within(make)

    def __iter__(self) -> SharedIterator:
        return self

    def __len__(self) -> int:
        return len(self.iterator)

    def __next__(self) -> Any:
        if self._begun_at != self.streams.restarts:
            self._begun_at = self.streams.restarts
            self._states = self.streams.states_of_rank_0()
        return self._within(lambda: next(self.iterator))

    def _within(self, function: Callable[[], Any]) -> Any:
        own = lightning_trainer.collect_rng_states(include_cuda=False)
        in_step = same_states(own, self._states)
        if not in_step:
            lightning_trainer.set_rng_states(self._states)
        try:
            return function()
        finally:
            self._states = lightning_trainer.collect_rng_states(include_cuda=False)
            if not in_step:
                lightning_trainer.set_rng_states(own)


class RankSeed:
    """The function that initializes the processes of a DataLoader: each rank's draw other numbers.

    Args:
        rank: whose loader it is; not rank 0, which draws as one process does.
        then: the user's own function, if there is one.
    """

    def __init__(self, rank: int, then: Callable[[int], None] | None) -> None:
        self.rank = rank
        self.then = then

    def __call__(self, worker_id: int) -> None:
        """Give the random numbers of this rank to a worker of its loader."""
        states = lightning_trainer.collect_rng_states(include_cuda=False)
        seed = seed_of_rank(states, self.rank)
        seed_generators(seed)
        lightning_dataloaders.set_seed_of_loader_worker(seed)
        if self.then is not None:
            self.then(worker_id)
