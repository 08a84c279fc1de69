"""Deal the batches of one process out to the workers of a group.

A run with W workers takes the order of samples that one process would draw, cuts it into global batches, and gives
rank r the r-th part of each. Global batch k therefore holds the same samples at every number of workers.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from itwinai.compat import lightning_trainer
from itwinai.data.loader_state import Position
from itwinai.data.rng_state import plain_random_states, same_states, unpack_random_states
from itwinai.drawn import Done
from itwinai.errors import CheckpointError, ConfigurationError

log = logging.getLogger(__name__)

Batch = list[Any]

# In what Python writes of objects that do not say how; it differs between processes.
_ADDRESS = re.compile(r"\b0x[0-9a-f]+")

# These draw a seed when the first sample is asked for, and no random number of the process after that.
_DRAWS_ONCE = (RandomSampler, WeightedRandomSampler)

# These do not depend on ranks. Other classes may, whatever their name.
_PLAIN = (SequentialSampler, SubsetRandomSampler, *_DRAWS_ONCE)

# Batches by which samplers are compared before they are used; a sampler without end cannot be drawn to its end.
_COMPARED = 64


class DistributedBatchSampler(Sampler[Batch]):
    """Give one worker its part of every global batch.

    Args:
        batches: the user's batch sampler, as one process would use it.
        num_replicas: number of workers, W.
        rank: this worker's rank.
        split: whether each batch of ``batches`` is a global batch and split among the workers; otherwise W of its
            batches in a row make a global batch, and each worker gets one of them, as the batch size of a DataLoader
            is the one per worker in Lightning.
        even_batches: whether all workers need the same number of batches, because they meet in collective operations.
            A worker for which the last global batch holds no sample then gets one that another worker has as well.
        borrow_samples: whether the last global batch may borrow samples from the one before to spare that. Right for
            evaluation, where it does not matter which samples share a batch.
        broadcast: sends an object from rank 0 to all workers. The user's sampler runs in the random state of rank 0
            on all of them: each would draw another order otherwise.
        gather: returns the objects of all workers, by rank. With it a sampler that is not one of torch's plain ones
            has to draw the same order on all ranks.
        whole: whether no batch of the user's is cut, unless ``split`` says so: of the last ones some workers may get
            none. Right for prediction, whose batches are then those of one process.

    All workers have to iterate at the same time, unless the sampler is sequential: they exchange the random state of
    rank 0. Nothing is drawn before it is needed, so that a generator of the user's own stands where it would stand
    in one process.

    Attributes:
        weights: for batches whose parts are of unequal size, by the index of the batch: this worker's number of
            samples times W, divided by the size of the global batch. With it as the weight of each worker's mean
            loss, the mean over workers is the mean over the samples of the global batch.
        iterations: how often a loader has begun to iterate.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        num_replicas: int,
        rank: int,
        *,
        split: bool,
        even_batches: bool,
        borrow_samples: bool,
        broadcast: Callable[[Any], Any],
        gather: Callable[[Any], list[Any]] | None = None,
        whole: bool = False,
    ) -> None:
        self.batches = batches
        self.num_replicas = num_replicas
        self.rank = rank
        self.split = split
        self.even_batches = even_batches
        self.borrow_samples = borrow_samples
        self.broadcast = broadcast
        self.gather = gather
        self.whole = whole
        self.weights: dict[int, float] = {}
        self.epoch = 0
        self.iterations = 0
        self._leading_states: dict[str, Any] = {}
        self._begun_with: dict[str, Any] | None = None
        self._generator_begun_with: torch.Tensor | None = None
        self._resumed: tuple[Position, int] | None = None
        self._left_out: tuple[Done, int | None] | None = None
        self._drop_last = bool(getattr(batches, "drop_last", False)) and not whole
        self.batch_size = getattr(batches, "batch_size", None)

    def __getattr__(self, name: str) -> Any:
        """Return what else the user's sampler has, for code that asks the loader's sampler."""
        if name.startswith("__") or "batches" not in vars(self):  # a copy that is being made
            raise AttributeError(name)
        return getattr(self.batches, name)

    @property
    def sampler(self) -> DistributedBatchSampler:
        """This object: Lightning announces a new epoch to ``batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Announce a new epoch, as for torch's DistributedSampler."""
        self.epoch = epoch
        for sampler in (self.batches, getattr(self.batches, "sampler", None)):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)

    @property
    def global_batch(self) -> int | None:
        """Number of samples of a whole global batch; None if a batch sampler of the user's own decides."""
        if type(self.batches) is not BatchSampler:
            return None
        return self.batches.batch_size * (1 if self.split else self.num_replicas)

    @property
    def generator(self) -> torch.Generator | None:
        """The random number generator that the user has given to the sampler."""
        for owner in (self.batches, getattr(self.batches, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                return generator
        return None

    def _generator_state(self) -> torch.Tensor | None:
        return None if self.generator is None else self.generator.get_state()

    def position(self) -> Position:
        """Return the position from which the order of this epoch can be drawn again."""
        return Position(
            global_batch=self.global_batch,
            begun_with=None if self._begun_with is None else plain_random_states(self._begun_with),
            generator=self._generator_state(),
            generator_begun_with=self._generator_begun_with,
        )

    def resume_drawing(self, position: Position) -> None:
        """Let the sampler's own generator, if it has one, resume where it was at a position."""
        if self.generator is not None and position.generator is not None:
            self.generator.set_state(position.generator)

    def resume(self, position: Position, batches: int) -> None:
        """Let the next iteration repeat the order of a position, without its first batches.

        Args:
            position: of the run that is resumed, in the middle of an epoch.
            batches: number of global batches that are left out.

        Raises:
            CheckpointError: the global batch has another size, so that the samples that were consumed do not end
                where a batch ends.
        """
        if position.global_batch != self.global_batch:
            raise CheckpointError(
                f"The checkpoint was saved in mid-epoch, after {batches} global batches of {position.global_batch} "
                f"samples, but this run has global batches of {self.global_batch} ({self.num_replicas} workers). "
                "Choose the loader's batch size so that batch size times workers is the same, or resume from a "
                "checkpoint saved at the end of an epoch."
            )
        self._resumed = position, batches

    def end_resume(self) -> None:
        """Let later iterations draw an order of their own, also if that of the resumed epoch was not asked for any."""
        self._resumed = None

    def leave_out(self, done: Done, first: int | None) -> None:
        """Draw only the samples that are not among others, and divide these among the workers.

        Args:
            done: indices that are left out.
            first: how many of the user's batches are drawn from; None for all.
        """
        self._left_out = done, first

    def remaining_batches(self) -> int | None:
        """Return the number of batches of each worker without the skipped ones; None if unknown."""
        if self._left_out is None or self._sampler_type() is not SequentialSampler:
            return None
        assert isinstance(self.batches, BatchSampler)
        done, first = self._left_out
        samples: int = len(self.batches.sampler)  # type: ignore[arg-type]
        missing = np.setdiff1d(np.arange(samples), done.numbers, assume_unique=True) // self.batches.batch_size
        batches = len(np.unique(missing if first is None else missing[missing < first]))
        return batches if self.split else -(-batches // self.num_replicas)

    def weight_of(self, batch_index: int) -> float:
        """Return the weight of this worker's mean loss for a batch of the current epoch; 1 for even batches."""
        return self.weights.get(batch_index, 1.0)

    def planned_weights(self, batch_index: int) -> list[float] | None:
        """Return the weights of all workers for a batch, before it is drawn; None where that cannot be told."""
        if self.global_batch is None or not _has_length(self.batches) or self.borrow_samples:
            return None
        assert isinstance(self.batches, BatchSampler)
        samples: int = len(self.batches.sampler)  # type: ignore[arg-type]
        total = max(0, min(self.global_batch, samples - batch_index * self.global_batch))
        if not total:
            return None
        size, larger = divmod(total, self.num_replicas)
        return [(size + (rank < larger)) * self.num_replicas / total for rank in range(self.num_replicas)]

    def __len__(self) -> int:
        if not isinstance(self.batches, Sized):
            raise TypeError(f"{type(self.batches).__name__} has no length.")
        if self.split:
            return len(self.batches)
        whole, rest = divmod(len(self.batches), self.num_replicas)
        return whole if self._drop_last else whole + bool(rest)

    def __iter__(self) -> Iterator[Batch]:
        # A DataLoader with processes begins twice, and asks only the second of these iterators.
        position, skipped = self._resumed or (None, 0)
        self._begun_with = self._generator_begun_with = None
        self.iterations += 1
        return self._batches(position, skipped)

    def _batches(self, position: Position | None, skipped: int) -> Iterator[Batch]:
        self._resumed = None
        self.weights = {}
        if self._is_plain_range() and not self.even_batches:
            yield from self._ranges()
            return
        # The worker that has most batches does not begin empty loaders at the end: the others may not wait for it.
        if _has_length(self.batches) and not len(self.batches):  # type: ignore[arg-type]
            return
        for index, group in enumerate(self._groups(position)):
            if index < skipped:
                continue
            parts = self._parts(group)
            part = parts[self.rank]
            total = sum(map(len, parts))
            if len(part) * self.num_replicas != total and not (part and self._own_sizes(group)):
                self.weights[index] = len(part) * self.num_replicas / total
            if part or self.even_batches:
                yield part or next(filter(None, parts))[:1]

    def _is_plain_range(self) -> bool:
        """Return whether this worker's batches follow from the number of samples: no index needs to be drawn."""
        return self.whole and not self.split and self._left_out is None and self._sampler_type() is SequentialSampler

    def _ranges(self) -> Iterator[Batch]:
        assert isinstance(self.batches, BatchSampler)
        samples: int = len(self.batches.sampler)  # type: ignore[arg-type]
        size = self.batches.batch_size
        for start in range(self.rank * size, samples, self.num_replicas * size):
            yield list(range(start, min(start + size, samples)))

    def _groups(self, position: Position | None) -> Iterator[list[Batch]]:
        """Yield each global batch, as the list of the user's batches that make it up, with borrowed samples."""
        if not self._lends():
            yield from self._global_batches(position)
            return
        previous: list[Batch] | None = None
        for group in self._global_batches(position):
            if previous is not None:
                previous, group = self._borrow(previous, group)
                yield previous
            previous = group
        if previous is not None:
            yield previous

    def _lends(self) -> bool:
        """Return whether the last global batch may have to borrow, so that each has to wait for the next."""
        if not self.borrow_samples or self.num_replicas == 1:
            return False
        size = self.global_batch
        if size is None or not _has_length(self.batches):
            return True
        assert isinstance(self.batches, BatchSampler)
        return 0 < len(self.batches.sampler) % size < self.num_replicas  # type: ignore[arg-type]

    def _global_batches(self, position: Position | None) -> Iterator[list[Batch]]:
        """Yield each global batch as the list of the user's batches that make it up."""
        size = 1 if self.split else self.num_replicas
        order = self._order(position)
        # Samplers of the user's own may yield arrays or tensors of indices.
        while group := [list(batch) for batch in itertools.islice(order, size)]:
            if len(group) == size or not self._drop_last:
                yield group

    def _borrow(self, previous: list[Batch], last: list[Batch]) -> tuple[list[Batch], list[Batch]]:
        """Move samples from a global batch to the next if that one has fewer samples than there are workers."""
        missing = self.num_replicas - sum(map(len, last))
        samples = list(itertools.chain(*previous))
        if missing <= 0 or len(samples) - missing < self.num_replicas:
            return previous, last
        return [samples[:-missing]], [samples[-missing:], *last]

    def _own_sizes(self, group: list[Batch]) -> bool:
        """Return whether the workers get whole batches of the user's, of any size."""
        if self.split:
            return False
        return self.whole or (len(group) == self.num_replicas and type(self.batches) is not BatchSampler)

    def _parts(self, group: list[Batch]) -> list[Batch]:
        """Cut one global batch into the parts of the workers, as even as it can be."""
        if self._own_sizes(group):
            return group + [[] for _ in range(self.num_replicas - len(group))]
        samples = list(itertools.chain(*group))
        size, larger = divmod(len(samples), self.num_replicas)
        starts = [rank * size + min(rank, larger) for rank in range(self.num_replicas + 1)]
        return [samples[start:end] for start, end in itertools.pairwise(starts)]

    def _order(self, position: Position | None) -> Iterator[Batch]:
        """Iterate over the user's batches in the order that rank 0 draws, or has drawn at a position."""
        # Subclasses, and batch samplers of the user's own, may draw at any time.
        sampler_type = self._sampler_type()
        if sampler_type is SequentialSampler:
            order = iter(self.batches)
        else:
            order = self._order_of_rank_0(sampler_type in _DRAWS_ONCE, position)
        return order if self._left_out is None else self._remaining(order, *self._left_out)

    @staticmethod
    def _remaining(order: Iterator[Batch], done: Done, first: int | None) -> Iterator[Batch]:
        """Yield what is not done of the first batches."""
        for batch in itertools.islice(order, first):
            if remaining := [index for index in batch if index not in done]:
                yield remaining

    def _sampler_type(self) -> type | None:
        return type(self.batches.sampler) if type(self.batches) is BatchSampler else None

    def _order_of_rank_0(self, draws_once: bool, position: Position | None) -> Iterator[Batch]:
        # A generator: like the samplers themselves it draws when the first batch is asked for, and not before.
        own = lightning_trainer.collect_rng_states(include_cuda=False)
        if position is not None and position.begun_with is not None:
            self._leading_states = unpack_random_states(position.begun_with)
            if self.generator is not None and position.generator_begun_with is not None:
                self.generator.set_state(position.generator_begun_with)
        elif self.num_replicas == 1:
            self._leading_states = own
        else:
            self._leading_states, generator_state = self.broadcast((own, self._generator_state()))
            if self.generator is not None and generator_state is not None:
                self.generator.set_state(generator_state)
        self._begun_with = self._leading_states
        self._generator_begun_with = self._generator_state()
        if self.num_replicas == 1 and position is None:
            yield from self.batches
            return
        in_step = same_states(own, self._leading_states)
        if not in_step:
            lightning_trainer.set_rng_states(self._leading_states)
        order = iter(self.batches)
        first = list(itertools.islice(order, 1))
        endless = not draws_once and not _has_length(self.batches)
        if not draws_once and not endless:
            first += order  # may draw at any time, and the workers' random states may diverge before
        self._leading_states = lightning_trainer.collect_rng_states(include_cuda=False)
        if not in_step:
            lightning_trainer.set_rng_states(own)
        if position is None and self._may_know_ranks():
            self._compare(first)
        yield from first
        while endless and (batch := self._drawn_apart(order)):
            yield from batch
        yield from order

    def _may_know_ranks(self) -> bool:
        return self.gather is not None and not is_plain(self.batches)

    def _compare(self, drawn: Sequence[Any]) -> None:
        """Raise an error unless all workers have drawn the same."""
        assert self.gather is not None
        prints = self.gather(fingerprint(drawn))
        if len(set(prints)) > 1:
            raise ConfigurationError(
                f"{name_of(self.batches)} draws another order on rank {self._other(prints)} than on rank 0, although "
                "both are in the same random state: it divides the samples among the ranks itself, or draws random "
                f"numbers of its own. To be divided among {self.num_replicas} workers it has to draw the same order "
                "on all of them. If it divides the samples itself, let the trainer take it as it is: "
                "ItwinaiTrainer(use_distributed_sampler=False). If it draws random numbers, let it take its seed from "
                "torch, numpy or random, which all workers share while it draws."
            )

    @staticmethod
    def _other(prints: list[Any]) -> int:
        return next(rank for rank, one in enumerate(prints) if one != prints[0])

    def _drawn_apart(self, order: Iterator[Batch]) -> list[Batch]:
        """Draw the next batch, if there is one, in the states that the sampler left; keep this process's own."""
        own = lightning_trainer.collect_rng_states(include_cuda=False)
        lightning_trainer.set_rng_states(self._leading_states)
        batch = list(itertools.islice(order, 1))
        self._leading_states = lightning_trainer.collect_rng_states(include_cuda=False)
        lightning_trainer.set_rng_states(own)
        return batch


class DistributedIndexSampler(Sampler[Any]):
    """Give one worker its part of a sampler whose every index is a batch by itself (``batch_size=None``).

    Args:
        sampler: the user's sampler.
        num_replicas: number of workers.
        rank: this worker's rank.
        **options: ``even_batches``, ``borrow_samples``, ``broadcast``, ``gather``, ``whole`` of
            `DistributedBatchSampler`; ``length`` of `OwnPartBatchSampler`, for a sampler that divides itself.
    """

    def __init__(self, sampler: Iterable[Any], num_replicas: int, rank: int, **options: Any) -> None:
        batches = BatchSampler(sampler, 1, False)
        self.dealt: DistributedBatchSampler
        if "length" in options:
            self.dealt = OwnPartBatchSampler(batches, num_replicas, rank, **options)
        else:
            self.dealt = DistributedBatchSampler(batches, num_replicas, rank, split=False, **options)

    def __getattr__(self, name: str) -> Any:
        """Return what else the user's sampler has."""
        if name.startswith("__") or "dealt" not in vars(self):
            raise AttributeError(name)
        return getattr(self.dealt.batches.sampler, name)  # type: ignore[attr-defined]

    @property
    def iterations(self) -> int:
        """How often a loader has begun to iterate."""
        return self.dealt.iterations

    def set_epoch(self, epoch: int) -> None:
        """Announce a new epoch."""
        self.dealt.set_epoch(epoch)

    def position(self) -> Position:
        """Return the position from which the order of this epoch can be drawn again."""
        return self.dealt.position()

    def resume_drawing(self, position: Position) -> None:
        """Let the sampler's own generator resume where it was at a position."""
        self.dealt.resume_drawing(position)

    def resume(self, position: Position, batches: int) -> None:
        """Let the next iteration repeat the order of a position, without its first batches."""
        self.dealt.resume(position, batches)

    def end_resume(self) -> None:
        """Let later iterations draw an order of their own."""
        self.dealt.end_resume()

    def leave_out(self, done: Done, first: int | None) -> None:
        """Draw only what is not done of the first indices."""
        self.dealt.leave_out(done, first)

    def remaining_batches(self) -> int | None:
        """Return the number of batches of each worker without the skipped ones; None if unknown."""
        return self.dealt.remaining_batches()

    def weight_of(self, batch_index: int) -> float:
        """Return the weight of this worker's mean loss for a batch of the current epoch."""
        return self.dealt.weight_of(batch_index)

    def planned_weights(self, batch_index: int) -> list[float] | None:
        """Return the weights of all workers for a batch, before it is drawn; None where that cannot be told."""
        return self.dealt.planned_weights(batch_index)

    def __len__(self) -> int:
        return len(self.dealt)

    def __iter__(self) -> Iterator[Any]:
        return (index for batch in self.dealt for index in batch)


class OwnPartBatchSampler(DistributedBatchSampler):
    """Give one worker the batches of a sampler that divides itself by rank, in step with the other workers.

    Args:
        batches: the user's batch sampler, as each worker has it.
        num_replicas: number of workers.
        rank: this worker's rank.
        length: number of batches of the worker that has most; None if the sampler has no length.
        even_batches: as of `DistributedBatchSampler`. A worker without batches repeats a sample, with weight 0.
        borrow_samples: without effect: the samples are divided.
        broadcast: as of `DistributedBatchSampler`: samplers divide one permutation, which all have to draw.
        gather: as of `DistributedBatchSampler`; tells how many samples the others have in the last batches.
        whole: without effect: each worker has its own batches.
    """

    gather: Callable[[Any], list[Any]]

    def __init__(
        self,
        batches: Iterable[Batch],
        num_replicas: int,
        rank: int,
        *,
        length: int | None,
        even_batches: bool,
        borrow_samples: bool,
        broadcast: Callable[[Any], Any],
        gather: Callable[[Any], list[Any]],
        whole: bool = False,
    ) -> None:
        options: dict[str, Any] = {
            "even_batches": even_batches,
            "borrow_samples": False,
            "broadcast": broadcast,
            "gather": gather,
        }
        super().__init__(batches, num_replicas, rank, split=False, **options)
        self.length = length

    @property
    def global_batch(self) -> int | None:
        """None: the user's sampler decides."""
        return None

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(f"{name_of(self.batches)} has no length.")
        return self.length

    def _may_know_ranks(self) -> bool:
        return False

    def _batches(self, position: Position | None, skipped: int) -> Iterator[Batch]:
        self.weights = {}
        if self.length == 0:
            return
        order = self._order_of_rank_0(False, position)
        if self._left_out is not None:
            done, first = self._left_out
            order = self._remaining(order, done, None if first is None else first // self.num_replicas)
        if not self.even_batches or self.length is None:
            yield from itertools.islice(order, skipped, None)
            return
        own = [list(batch) for batch in order]
        sizes = self.gather([len(batch) for batch in own])
        numbers = [len(of_rank) for of_rank in sizes]
        if not min(numbers):
            raise ConfigurationError(
                f"{name_of(self.batches)} divides the samples among the ranks itself, and leaves rank "
                f"{numbers.index(0)} without any ({numbers} batches, by rank)."
            )
        # Before its end a sampler has batches of what sizes it likes, each of which counts as one.
        for index in range(min(numbers) - 1, max(numbers)):
            total = sum(of_rank[index] for of_rank in sizes if index < len(of_rank))
            mine = len(own[index]) if index < len(own) else 0
            if mine * self.num_replicas != total:
                self.weights[index] = mine * self.num_replicas / total
        for index in range(skipped, max(numbers)):
            yield own[index] if index < len(own) else own[-1][:1]


class ResumableSampler(DistributedBatchSampler):
    """Give the only worker all indices of the user's sampler, as they come, and be able to resume in mid-epoch.

    Args:
        sampler: the user's sampler, or batch sampler.
        batch_size: how many of its indices make a batch; None if it yields batches.
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int | None) -> None:
        super().__init__(sampler, 1, 0, split=False, even_batches=True, borrow_samples=False, broadcast=_returned)
        self.batch_size = batch_size

    @property
    def global_batch(self) -> int | None:
        """Number of samples of a batch; None if the user's batch sampler decides."""
        return self.batch_size

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        position, skipped = self._resumed or (None, 0)
        self._resumed = self._begun_with = self._generator_begun_with = None
        self.iterations += 1
        return itertools.islice(self._order(position), skipped * (self.batch_size or 1), None)

    def end_resume(self) -> None:
        """Do nothing: torch's batch sampler, which takes these indices, begins when it is asked for a batch."""

    def _sampler_type(self) -> type | None:
        return type(self.batches)


def _returned(value: Any) -> Any:
    return value


def is_plain(batches: Iterable[Any]) -> bool:
    """Return whether a sampler, or a batch sampler around one, is of torch's classes, which do not depend on ranks."""
    return type(batches.sampler if type(batches) is BatchSampler else batches) in _PLAIN


def divides_itself(
    batches: Iterable[Any], dataset: Any, broadcast: Callable[[Any], Any], gather: Callable[[Any], list[Any]]
) -> bool:
    """Return whether a sampler draws other samples on each rank, though all are in the same random state.

    All workers have to call it. The sampler itself is not drawn from but copies. Where it cannot be copied, draws
    random numbers of its own, or draws the same samples in another order, the answer is no, and
    `DistributedBatchSampler` finds out when it draws.

    Args:
        batches: a sampler, or a batch sampler.
        dataset: what it draws from, which is not copied.
        broadcast: sends an object from rank 0 to all workers.
        gather: returns the objects of all workers, by rank.
    """
    if is_plain(batches):
        return False
    own = lightning_trainer.collect_rng_states(include_cuda=False)
    states = broadcast(own)
    drawn: list[list[Any]] = []
    try:
        copies = [copy.deepcopy(batches, {id(dataset): dataset}) for _ in range(2)]
    except Exception as error:  # copying runs the user's own methods: anything can come
        log.debug(f"{name_of(batches)} cannot be copied, and is compared when it is drawn: {error!r}")
    else:
        try:
            for copied in copies:
                lightning_trainer.set_rng_states(states)
                drawn.append(list(itertools.islice(copied, _COMPARED)))
        finally:
            lightning_trainer.set_rng_states(own)
    repeats = len(drawn) == 2 and fingerprint(drawn[0]) == fingerprint(drawn[1])
    everyone = gather((fingerprint(drawn[0]), _samples(drawn[0])) if repeats else None)
    if None in everyone or len({one for one, _ in everyone}) == 1:
        return False
    counted = Counter(itertools.chain(*(samples for _, samples in everyone)))
    shared = sum(number > 1 for number in counted.values())
    return shared <= len(everyone)  # as many as may be repeated to give all ranks equally many


def _samples(drawn: Any) -> set[str]:
    """Return the indices in an order, or in batches of them, each once."""
    if hasattr(drawn, "tolist"):
        drawn = drawn.tolist()
    if isinstance(drawn, (list, tuple)):
        return set().union(*map(_samples, drawn))
    return {_ADDRESS.sub("", repr(drawn))}


def fingerprint(drawn: Sequence[Any]) -> str:
    """Return what tells an order of indices, or of batches of them, from others."""
    plain = [one.tolist() if hasattr(one, "tolist") else one for one in drawn]
    return hashlib.sha256(_ADDRESS.sub("", repr(plain)).encode()).hexdigest()


def name_of(batches: Iterable[Any]) -> str:
    """Return what a message calls a sampler, or a batch sampler."""
    if type(batches) is BatchSampler:
        return f"The sampler {type(batches.sampler).__name__}"
    return f"The batch sampler {type(batches).__name__}"


def _has_length(batches: Iterable[Batch]) -> bool:
    try:
        len(batches)  # type: ignore[arg-type]
    except TypeError:  # a BatchSampler has the method also where its sampler has no length
        return False
    return True
