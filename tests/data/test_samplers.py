"""Dealing out batches, property by property: the workers of a group iterate one after the other in this process."""

from __future__ import annotations

import functools
import itertools
import math
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from itwinai.compat import lightning_trainer
from itwinai.data.samplers import (
    DistributedBatchSampler,
    DistributedIndexSampler,
    OwnPartBatchSampler,
    divides_itself,
    fingerprint,
    is_plain,
)
from itwinai.errors import ConfigurationError

Batch = list[Any]

properties = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


# ----------------------------------------------------------------------------------------- samplers of a user's own


class LazySampler(Sampler[int]):
    """Draws every index when it is asked for, from all the generators that a user may draw from."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.size):
            drawn = random.randrange(1000) + int(np.random.randint(1000)) + int(torch.randint(1000, ()))
            yield drawn % self.size


class EndlessSampler(Sampler[int]):
    """Shuffles again and again, without a length; whoever asks for all of it is told so, instead of waiting forever."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        for _ in range(1000):
            yield from torch.randperm(self.size).tolist()
        raise AssertionError("all of an endless order was asked for")


class LazyRandomSampler(RandomSampler):
    """torch's sampler by its class only: it draws whenever it is asked for an index."""

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(len(self)) for _ in range(len(self)))


class ShuffledBatches(BatchSampler):
    """Batches of neighbours, as for sequences of like length, in random order; each is drawn when it is asked for."""

    def __iter__(self) -> Iterator[Batch]:
        batches = list(super().__iter__())
        while batches:
            yield batches.pop(random.randrange(len(batches)))


class SizedBatches(Sampler[Batch]):
    """Batches of sizes that the user chose, of consecutive samples."""

    def __init__(self, sizes: list[int], drop_last: bool = False) -> None:
        self.sizes = sizes
        self.drop_last = drop_last

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        samples = itertools.count()
        return (list(itertools.islice(samples, size)) for size in self.sizes)


class EpochSampler(Sampler[int]):
    """Shuffles by the number of the epoch alone, like torch's DistributedSampler."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(random.Random(self.epoch).sample(range(self.size), self.size))


ORDERS: dict[str, Callable[[int], Sampler[int]]] = {
    "sequential": lambda size: SequentialSampler(range(size)),
    "shuffled": lambda size: RandomSampler(range(size)),
    "with replacement": lambda size: RandomSampler(range(size), replacement=True),
    "weighted": lambda size: WeightedRandomSampler([1.0 + index for index in range(size)], size),
    "subset": lambda size: SubsetRandomSampler(range(size)),
    "lazy": LazySampler,
}
SHUFFLED = sorted(set(ORDERS) - {"sequential"})


# --------------------------------------------------------------------------------------------- workers, one by one


@contextmanager
def random_states(states: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run in other random states; the dictionary then holds those in which the block ended."""
    outer = lightning_trainer.collect_rng_states(include_cuda=False)
    lightning_trainer.set_rng_states(states)
    try:
        yield states
    finally:
        states.update(lightning_trainer.collect_rng_states(include_cuda=False))
        lightning_trainer.set_rng_states(outer)


def seeded(seed: int) -> dict[str, Any]:
    """Return the random states of a process that seeded all its generators."""
    with random_states(lightning_trainer.collect_rng_states(include_cuda=False)) as states:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
    return states


def draw() -> tuple[float, float, float]:
    """Draw a number from each generator, as a model may between two batches."""
    return float(torch.rand(())), random.random(), float(np.random.rand())


class Workers:
    """The workers of a group, each with a sampler and with random states of its own.

    Args:
        make: makes the dealing sampler of one worker, given its number of workers, its rank and how to broadcast.
        world_size: number of workers.
        seed: seed of rank 0; the others are seeded differently.
        same_seed: whether they are all seeded alike instead.
    """

    def __init__(self, make: Callable[..., Any], world_size: int, seed: int = 0, same_seed: bool = False) -> None:
        self.states = [seeded(seed + rank * (not same_seed)) for rank in range(world_size)]
        self.broadcasts = [0] * world_size
        self.sent: bytes | None = None
        self.dealt = [
            make(num_replicas=world_size, rank=rank, broadcast=functools.partial(self._broadcast, rank))
            for rank in range(world_size)
        ]

    def _broadcast(self, rank: int, value: Any) -> Any:
        self.broadcasts[rank] += 1
        if rank == 0:
            self.sent = pickle.dumps(value)
        assert self.sent is not None, "rank 0 sends nothing: the others would wait forever"
        return pickle.loads(self.sent)

    def each(self, function: Callable[[Any], Any]) -> list[Any]:
        """Call a function with the sampler of each worker, in the worker's random states."""
        self.sent = None
        returned = []
        for states, dealt in zip(self.states, self.dealt, strict=True):
            with random_states(states):
                returned.append(function(dealt))
        return returned

    def iterate(self, limit: int | None = None) -> list[list[Any]]:
        """Let each worker iterate once, and return its batches."""
        return self.each(lambda dealt: list(itertools.islice(dealt, limit)))

    def set_epoch(self, epoch: int) -> None:
        for dealt in self.dealt:
            dealt.set_epoch(epoch)


def workers_of(batches: Callable[[], Iterable[Batch]], world_size: int, **options: Any) -> Workers:
    """Deal the batches of a batch sampler; unless told otherwise, as for training."""
    group = {name: options.pop(name) for name in ("seed", "same_seed") if name in options}
    options = {"split": False, "even_batches": True, "borrow_samples": False, **options}
    return Workers(lambda **place: DistributedBatchSampler(batches(), **place, **options), world_size, **group)


def one_process(order: str, size: int, seed: int, batch_size: int, drop_last: bool = False) -> list[Batch]:
    """Return the batches that a single process draws."""
    with random_states(seeded(seed)):
        return list(BatchSampler(ORDERS[order](size), batch_size, drop_last))


def as_even_as_possible(samples: Batch, world_size: int) -> list[Batch]:
    return [part.tolist() for part in np.array_split(np.array(samples, dtype=int), world_size)]


def in_order(dealt: list[list[Batch]]) -> Batch:
    """Return the samples of all workers in the order (batch 0 of rank 0), (batch 0 of rank 1)..."""
    return list(itertools.chain(*(batch for step in itertools.zip_longest(*dealt, fillvalue=[]) for batch in step)))


@dataclass(frozen=True)
class Run:
    """The samples of one epoch and how they are divided."""

    order: str = "shuffled"
    size: int = 7
    batch_size: int = 2
    world_size: int = 3
    drop_last: bool = False
    split: bool = False
    seed: int = 0

    def batches(self) -> BatchSampler:
        return BatchSampler(ORDERS[self.order](self.size), self.batch_size, self.drop_last)

    def workers(self, **options: Any) -> Workers:
        return workers_of(self.batches, self.world_size, split=self.split, seed=self.seed, **options)

    def global_batches(self) -> list[Batch]:
        """Return the batches that a single process draws which uses the global batch size."""
        return one_process(
            self.order, self.size, self.seed, self.batch_size * (1 if self.split else self.world_size), self.drop_last
        )


runs = st.builds(
    Run,
    order=st.sampled_from(sorted(ORDERS)),
    size=st.integers(1, 60),
    batch_size=st.integers(1, 12),
    world_size=st.integers(1, 5),
    drop_last=st.booleans(),
    split=st.booleans(),
    seed=st.integers(0, 10_000),
)


# ------------------------------------------------------------------------------------------------- global batches


@properties
@given(run=runs, even_batches=st.booleans())
@example(run=Run(size=5, batch_size=1, world_size=4), even_batches=True)
@example(run=Run(size=5, batch_size=1, world_size=4), even_batches=False)
@example(run=Run(size=7, batch_size=2, world_size=3, split=True), even_batches=True)
def test_global_batch_holds_the_samples_of_one_process(run: Run, even_batches: bool) -> None:
    dealt = run.workers(even_batches=even_batches).iterate()
    assert max(map(len, dealt)) == len(run.global_batches())
    for index, samples in enumerate(run.global_batches()):
        parts = [batches[index] if index < len(batches) else [] for batches in dealt]
        if even_batches:
            for rank in range(len(samples), run.world_size):  # they have to step, and there is nothing left for them
                assert len(parts[rank]) == 1 and parts[rank][0] in samples
                parts[rank] = []
        assert parts == as_even_as_possible(samples, run.world_size)


@properties
@given(run=runs, borrow_samples=st.booleans())
def test_even_batches_means_equally_many_batches_as_announced(run: Run, borrow_samples: bool) -> None:
    workers = run.workers(even_batches=True, borrow_samples=borrow_samples)
    number = len(run.global_batches())
    assert [len(batches) for batches in workers.iterate()] == [number] * run.world_size
    assert [len(dealt) for dealt in workers.dealt] == [number] * run.world_size


@properties
@given(run=runs, borrow_samples=st.booleans())
def test_without_even_batches_every_sample_comes_exactly_once(run: Run, borrow_samples: bool) -> None:
    dealt = run.workers(even_batches=False, borrow_samples=borrow_samples).iterate()
    # In this order the predictions of the workers are put together.
    assert in_order(dealt) == list(itertools.chain(*run.global_batches()))


@properties
@given(run=runs)
@example(run=Run(size=5, batch_size=2, world_size=2))
@example(run=Run(size=6, batch_size=1, world_size=5))
@example(run=Run(size=16, batch_size=5, world_size=4, split=True))
@example(run=Run(size=6, batch_size=5, world_size=3, split=True))
def test_lending_leaves_no_more_duplicates_than_necessary(run: Run) -> None:
    dealt = run.workers(borrow_samples=True).iterate()
    samples = list(itertools.chain(*run.global_batches()))
    sizes = [len(batch) for batch in run.global_batches()]
    if len(sizes) > 1 and sizes[-2] + sizes[-1] >= 2 * run.world_size > run.world_size + sizes[-1]:
        sizes[-1] = run.world_size  # the last borrows, and leaves the lender enough
    duplicates = sum(max(0, run.world_size - size) for size in sizes)
    given_out = Counter(in_order(dealt))
    assert not Counter(samples) - given_out
    assert (given_out - Counter(samples)).total() == duplicates
    if not run.split or run.batch_size % run.world_size == 0:
        # All that a trainer sets up: no duplicates as soon as there is a sample for each batch of each worker.
        assert (duplicates == 0) == (len(samples) >= run.world_size * len(sizes))
    if duplicates == 0:
        assert in_order(dealt) == samples


def test_only_the_last_two_global_batches_differ_when_samples_are_lent() -> None:
    def batches() -> BatchSampler:
        return BatchSampler(SequentialSampler(range(13)), 2, False)

    assert workers_of(batches, 3, borrow_samples=False).iterate() == [
        [[0, 1], [6, 7], [12]],
        [[2, 3], [8, 9], [12]],
        [[4, 5], [10, 11], [12]],
    ]
    assert workers_of(batches, 3, borrow_samples=True).iterate() == [
        [[0, 1], [6, 7], [10]],
        [[2, 3], [8], [11]],
        [[4, 5], [9], [12]],
    ]


def test_batches_that_hold_every_sample_lose_some_but_not_all() -> None:
    """With one sample per worker and batch there is nothing to borrow_samples: the lender would lack it."""
    dealt = workers_of(lambda: BatchSampler(SequentialSampler(range(5)), 1, False), 4, borrow_samples=True).iterate()
    assert [batches[0] for batches in dealt] == [[0], [1], [2], [3]]
    assert [batches[1] for batches in dealt] == [[4], [4], [4], [4]]


@pytest.mark.parametrize("borrow_samples", [False, True])
@pytest.mark.parametrize("even_batches", [False, True])
def test_no_samples_no_batches(even_batches: bool, borrow_samples: bool) -> None:
    workers = workers_of(
        lambda: BatchSampler(SequentialSampler(()), 2, False),
        3,
        even_batches=even_batches,
        borrow_samples=borrow_samples,
        split=False,
    )
    assert workers.iterate() == [[], [], []]
    assert [len(dealt) for dealt in workers.dealt] == [0, 0, 0]


@pytest.mark.parametrize("borrow_samples", [False, True])
@pytest.mark.parametrize(
    ("run", "sizes_on_rank_1"),
    [
        (Run("sequential", 23, 4, 2, drop_last=True), [4, 4]),  # the fifth batch of 4 has no partner
        (Run("sequential", 23, 4, 2, drop_last=False), [4, 4, 3]),
        (Run("sequential", 24, 4, 2, drop_last=True), [4, 4, 4]),
        (Run("sequential", 23, 4, 2, drop_last=True, split=True), [2] * 5),
        (Run("sequential", 23, 4, 2, drop_last=False, split=True), [2] * 5 + [1]),
        (Run("sequential", 3, 4, 2, drop_last=True), []),
    ],
)
def test_drop_last_drops_what_is_not_a_whole_global_batch(
    run: Run, sizes_on_rank_1: list[int], borrow_samples: bool
) -> None:
    assert [len(batch) for batch in run.workers(borrow_samples=borrow_samples).iterate()[1]] == sizes_on_rank_1


# -------------------------------------------------------------------------------------------------------- weights


@properties
@given(run=runs, borrow_samples=st.booleans())
@example(run=Run(size=7, batch_size=1, world_size=4), borrow_samples=False)
@example(run=Run(size=13, batch_size=2, world_size=3), borrow_samples=True)
def test_weighted_mean_over_workers_is_the_mean_over_samples(run: Run, borrow_samples: bool) -> None:
    loss_of = [random.Random(run.seed + index).random() for index in range(run.size)]
    workers = run.workers(borrow_samples=borrow_samples)
    # Asked as the loop does: when the batch is there, and no later one.
    stepped = workers.each(lambda dealt: [(batch, dealt.weight_of(index)) for index, batch in enumerate(dealt)])
    expected = run.global_batches()
    if borrow_samples and len(expected) > 1 and len(expected[-2] + expected[-1]) >= 2 * run.world_size:
        missing = max(0, run.world_size - len(expected[-1]))
        *expected, previous, last = expected
        kept = len(previous) - missing
        expected += [previous[:kept], previous[kept:] + last]
    for parts, samples in zip(zip(*stepped, strict=True), expected, strict=True):
        mean = sum(weight * sum(loss_of[i] for i in part) / len(part) for part, weight in parts) / run.world_size
        assert math.isclose(mean, sum(loss_of[i] for i in samples) / len(samples), rel_tol=1e-9)
    # A loop that fetches ahead asks after the next batch has come.
    for dealt, steps in zip(workers.dealt, stepped, strict=True):
        assert [dealt.weight_of(index) for index in range(len(steps))] == [weight for _, weight in steps]


def test_even_batches_weigh_one_even_if_those_of_the_epoch_before_were_not() -> None:
    samples = list(range(9))
    workers = workers_of(lambda: BatchSampler(SequentialSampler(samples), 2, False), 2)
    workers.iterate()
    assert [dealt.weight_of(2) for dealt in workers.dealt] == [2.0, 0.0]
    samples.append(9)
    workers.iterate()
    assert [[dealt.weight_of(index) for index in range(3)] for dealt in workers.dealt] == [[1.0] * 3] * 2


# -------------------------------------------------------------------------------------------------- random states

# Without a remainder, so that no worker gets a duplicate: batches of 6 for 3 workers.
SIZE = 24


def three_workers(order: str, seed: int = 4, same_seed: bool = False) -> Workers:
    return workers_of(lambda: BatchSampler(ORDERS[order](SIZE), 2, False), 3, seed=seed, same_seed=same_seed)


def indices_of_one_process(order: str, seed: int = 4) -> Batch:
    return list(itertools.chain(*one_process(order, SIZE, seed, 6)))


def after_one_process(order: str, seed: int = 4) -> dict[str, Any]:
    """Return the random states of a single process that has iterated once."""
    with random_states(seeded(seed)) as states:
        list(BatchSampler(ORDERS[order](SIZE), 6, False))
    return states


def next_numbers(states: dict[str, Any], count: int = 3) -> list[Any]:
    """Return what a process in these states will draw next."""
    with random_states(dict(states)):
        return [draw() for _ in range(count)]


@pytest.mark.parametrize("order", SHUFFLED)
def test_following_rank_0_does_not_touch_the_random_states_of_the_others(order: str) -> None:
    workers = three_workers(order)
    before = [next_numbers(states) for states in workers.states]
    workers.iterate()
    after = [next_numbers(states) for states in workers.states]
    assert after == [next_numbers(after_one_process(order)), *before[1:]]


@pytest.mark.parametrize("order", SHUFFLED)
def test_workers_in_the_same_random_states_draw_on_like_one_process(order: str) -> None:
    workers = three_workers(order, same_seed=True)
    assert in_order(workers.iterate()) == indices_of_one_process(order)
    assert [next_numbers(states) for states in workers.states] == [next_numbers(after_one_process(order))] * 3


@pytest.mark.parametrize("generator", ["torch", "python", "numpy"])
def test_workers_that_differ_in_one_generator_only_follow_rank_0(generator: str) -> None:
    workers = three_workers("lazy", same_seed=True)
    workers.states[1][generator] = seeded(5)[generator]
    before = next_numbers(workers.states[1])
    assert in_order(workers.iterate()) == indices_of_one_process("lazy")
    assert next_numbers(workers.states[1]) == before


@pytest.mark.parametrize("order", SHUFFLED)
def test_what_a_model_draws_between_batches_and_the_order_do_not_disturb_each_other(order: str) -> None:
    workers = three_workers(order)
    before = [next_numbers(states, 4) for states in workers.states]
    steps = workers.each(lambda dealt: [(batch, draw()) for batch in dealt])
    assert in_order([[batch for batch, _ in of_rank] for of_rank in steps]) == indices_of_one_process(order)
    assert [[numbers for _, numbers in of_rank] for of_rank in steps[1:]] == before[1:]


@pytest.mark.parametrize("order", SHUFFLED)
def test_random_states_are_restored_when_an_epoch_is_cut_short(order: str) -> None:
    workers = three_workers(order)
    before = [next_numbers(states) for states in workers.states]
    assert in_order(workers.iterate(limit=2)) == indices_of_one_process(order)[:12]
    assert [next_numbers(states) for states in workers.states[1:]] == before[1:]


@pytest.mark.parametrize("order", SHUFFLED)
def test_new_epoch_is_drawn_anew_by_rank_0(order: str) -> None:
    workers = three_workers(order)
    first = in_order(workers.iterate())
    workers.states[0] = seeded(11)  # whatever the model drew in the meantime
    workers.set_epoch(1)
    second = in_order(workers.iterate())
    assert second == indices_of_one_process(order, seed=11) != first
    assert workers.broadcasts == [2, 2, 2]


@pytest.mark.parametrize("same_seed", [False, True])
@pytest.mark.parametrize("order", SHUFFLED)
def test_second_iteration_of_an_epoch_continues_where_rank_0_is(order: str, same_seed: bool) -> None:
    """As a loader that is shorter than another one, and begins anew within the epoch."""
    workers = three_workers(order, same_seed=same_seed)
    with random_states(seeded(4)):
        sampler = BatchSampler(ORDERS[order](SIZE), 6, False)
        expected = [list(itertools.chain(*sampler)) for _ in range(3)]
    assert [in_order(workers.iterate()) for _ in range(3)] == expected
    assert workers.broadcasts == [3, 3, 3]


@pytest.mark.parametrize("same_seed", [False, True])
@pytest.mark.parametrize("order", ["shuffled", "subset"])
def test_second_iteration_of_an_epoch_has_one_order_whatever_was_drawn_before(order: str, same_seed: bool) -> None:
    """Between the two the workers draw numbers: dropout in parts of unequal size, or the seeds of other loaders."""
    workers = three_workers(order, same_seed=same_seed)
    workers.iterate()
    workers.each(lambda dealt: [draw() for _ in range(3 - dealt.rank)])
    assert sorted(in_order(workers.iterate())) == list(range(SIZE))


def test_sequential_order_needs_no_broadcast() -> None:
    workers = workers_of(lambda: BatchSampler(SequentialSampler(range(20)), 2, False), 3)
    before = [next_numbers(states) for states in workers.states]
    for epoch in range(2):
        workers.set_epoch(epoch)
        workers.iterate()
    assert workers.broadcasts == [0, 0, 0]
    assert [next_numbers(states) for states in workers.states] == before


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_is_drawn_before_the_first_batch_is_asked_for(order: str) -> None:
    """As by torch's samplers: a DataLoader draws a seed for its workers in between."""
    workers = three_workers(order)
    before = [next_numbers(states) for states in workers.states]
    workers.each(iter)
    assert workers.broadcasts == [0, 0, 0]
    assert [next_numbers(states) for states in workers.states] == before


def test_subclass_of_a_torch_sampler_may_draw_at_any_time() -> None:
    workers = workers_of(lambda: BatchSampler(LazyRandomSampler(range(SIZE)), 2, False), 3, seed=4)
    with random_states(seeded(4)):
        expected = list(LazyRandomSampler(range(SIZE)))
    assert in_order(workers.iterate()) == expected


@pytest.mark.parametrize("where", ["sampler", "batch sampler"])
def test_epoch_is_announced_to_the_user_s_sampler(where: str) -> None:
    def batches() -> Any:
        if where == "sampler":
            return BatchSampler(EpochSampler(12), 2, False)
        sampler = SizedBatches([2] * 6)
        sampler.set_epoch = lambda epoch: setattr(sampler, "epoch", epoch)  # type: ignore[attr-defined]
        return sampler

    workers = workers_of(batches, 2)
    for epoch in (0, 1, 7):
        workers.set_epoch(epoch)
        if where == "sampler":
            assert in_order(workers.iterate()) == random.Random(epoch).sample(range(12), 12)
        else:
            assert [dealt.batches.epoch for dealt in workers.dealt] == [epoch, epoch]
    assert all(dealt.sampler is dealt for dealt in workers.dealt)  # whom Lightning announces the epoch to


# ------------------------------------------------------------------------------------ batch samplers of a user's own


@properties
@given(
    sizes=st.lists(st.integers(1, 6), max_size=14),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    even_batches=st.booleans(),
)
def test_each_worker_gets_whole_batches_of_a_user_s_own_batch_sampler(
    sizes: list[int], world_size: int, drop_last: bool, even_batches: bool
) -> None:
    workers = workers_of(lambda: SizedBatches(sizes, drop_last), world_size, even_batches=even_batches)
    dealt = workers.iterate()
    batches = list(SizedBatches(sizes))
    whole = len(batches) // world_size
    for rank in range(world_size):
        assert dealt[rank][:whole] == batches[: whole * world_size][rank::world_size]
        assert all(workers.dealt[rank].weight_of(index) == 1.0 for index in range(whole))
    rest = list(itertools.chain(*batches[whole * world_size :]))
    if drop_last or not rest:
        assert [len(batches) for batches in dealt] == [whole] * world_size
        return
    parts = [batches[whole] if len(batches) > whole else [] for batches in dealt]
    shares = as_even_as_possible(rest, world_size)
    assert [part if share else [] for part, share in zip(parts, shares, strict=True)] == shares
    if even_batches:
        assert (
            [len(dealt) for dealt in workers.dealt] == [len(batches) for batches in dealt] == [whole + 1] * world_size
        )
        weights = [dealt.weight_of(whole) for dealt in workers.dealt]
        assert weights == pytest.approx([len(share) * world_size / len(rest) for share in shares])


@properties
@given(
    sizes=st.lists(st.integers(1, 7), max_size=14),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    borrow_samples=st.booleans(),
)
def test_batches_of_a_user_s_own_batch_sampler_are_split(
    sizes: list[int], world_size: int, drop_last: bool, borrow_samples: bool
) -> None:
    workers = workers_of(lambda: SizedBatches(sizes, drop_last), world_size, split=True, borrow_samples=borrow_samples)
    dealt = workers.iterate()
    assert [len(batches) for batches in dealt] == [len(dealt) for dealt in workers.dealt] == [len(sizes)] * world_size
    if not borrow_samples:
        for samples, *parts in zip(SizedBatches(sizes), *dealt, strict=True):
            shares = as_even_as_possible(samples, world_size)
            assert [part if share else [] for part, share in zip(parts, shares, strict=True)] == shares
    assert set(in_order(dealt)) == set(range(sum(sizes)))


def test_batches_may_be_a_mere_list() -> None:
    workers = workers_of(lambda: [[5, 3], [1], [0, 2, 4]], 2)
    assert workers.iterate() == [[[5, 3], [0, 2]], [[1], [4]]]


def test_length_is_that_of_the_user_s_batches_or_there_is_none() -> None:
    (dealt,) = workers_of(lambda: (batch for batch in [[0], [1]]), 1).dealt
    with pytest.raises(TypeError, match="has no length"):
        len(dealt)
    (dealt,) = workers_of(lambda: BatchSampler(EndlessSampler(4), 2, False), 1).dealt
    with pytest.raises(TypeError):
        len(dealt)


def test_random_batches_over_a_sequential_sampler_follow_rank_0() -> None:
    """What is drawn is drawn by the batch sampler; the sampler in it tells nothing."""
    workers = workers_of(lambda: ShuffledBatches(SequentialSampler(range(20)), 2, False), 2, seed=4)
    with random_states(seeded(4)):
        expected = list(ShuffledBatches(SequentialSampler(range(20)), 2, False))
    assert in_order(workers.iterate()) == list(itertools.chain(*expected))


def test_random_batches_over_a_random_sampler_follow_rank_0() -> None:
    workers = workers_of(lambda: ShuffledBatches(RandomSampler(range(20)), 2, False), 2, seed=4)
    with random_states(seeded(4)):
        expected = list(ShuffledBatches(RandomSampler(range(20)), 2, False))
    assert in_order(workers.iterate()) == list(itertools.chain(*expected))


@pytest.mark.parametrize("same_seed", [True, False])
def test_endless_order_is_asked_for_no_more_than_is_needed(same_seed: bool) -> None:
    workers = workers_of(lambda: BatchSampler(EndlessSampler(6), 2, False), 3, seed=4, same_seed=same_seed)
    dealt = workers.iterate(limit=5)
    with random_states(seeded(4)):
        expected = list(itertools.islice(EndlessSampler(6), 30))
    assert in_order(dealt) == expected


def test_endless_order_is_one_order_whatever_the_model_draws() -> None:
    workers = workers_of(lambda: BatchSampler(EndlessSampler(6), 2, False), 3, seed=4)
    dealt = workers.each(lambda dealt: [batch for batch in itertools.islice(dealt, 5) if draw()])
    global_batches = [sorted(itertools.chain(*parts)) for parts in zip(*dealt, strict=True)]
    assert global_batches == [list(range(6))] * 5


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_batches_may_be_arrays(kind: Callable[[Batch], Any]) -> None:
    dealt = workers_of(lambda: [kind([0, 1]), kind([2, 3]), kind([4, 5])], 2).iterate()
    assert [[[int(i) for i in batch] for batch in batches] for batches in dealt] == [[[0, 1], [4]], [[2, 3], [5]]]


# ---------------------------------------------------------------------------------- loaders without batches of theirs


@properties
@given(
    order=st.sampled_from(sorted(ORDERS)),
    size=st.integers(1, 30),
    world_size=st.integers(1, 5),
    even_batches=st.booleans(),
    borrow_samples=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_samplers_without_batches_are_dealt_out_in_turn(
    order: str, size: int, world_size: int, even_batches: bool, borrow_samples: bool, seed: int
) -> None:
    workers = Workers(
        lambda **place: DistributedIndexSampler(
            ORDERS[order](size), **place, even_batches=even_batches, borrow_samples=borrow_samples
        ),
        world_size,
        seed,
    )
    dealt = workers.iterate()
    samples = list(itertools.chain(*one_process(order, size, seed, 1)))
    steps = -(-size // world_size)
    missing = steps * world_size - size
    if even_batches:
        assert (
            [len(sampler) for sampler in workers.dealt] == [len(indices) for indices in dealt] == [steps] * world_size
        )
        alone = [indices.pop() for indices in dealt[world_size - missing :]]
        assert set(alone) <= set(samples[(steps - 1) * world_size :])
    assert dealt == [samples[rank::world_size] for rank in range(world_size)]


def test_samplers_without_batches_weigh_every_sample_alike() -> None:
    """Seven samples for four workers: in the second step one of them has none of its own."""
    workers = Workers(
        lambda **place: DistributedIndexSampler(
            SequentialSampler(range(7)), **place, even_batches=True, borrow_samples=False
        ),
        world_size=4,
    )
    last = [(indices[-1], dealt.weight_of(1)) for indices, dealt in zip(workers.iterate(), workers.dealt, strict=True)]
    assert sum(index * weight for index, weight in last) / 4 == pytest.approx((4 + 5 + 6) / 3)


def test_samplers_without_batches_pass_the_epoch_on() -> None:
    workers = Workers(
        lambda **place: DistributedIndexSampler(EpochSampler(8), **place, even_batches=True, borrow_samples=False),
        world_size=2,
    )
    for epoch in (0, 3):
        workers.set_epoch(epoch)
        assert [i for step in zip(*workers.iterate(), strict=True) for i in step] == random.Random(epoch).sample(
            range(8), 8
        )
    assert workers.broadcasts == [2, 2]


# ------------------------------------------------------------------------------------ generators of a user's own


@pytest.mark.parametrize("fetched", ["up to the length", "to the end"])
@pytest.mark.parametrize(("size", "drop_last"), [(8, False), (8, True), (7, False), (7, True), (6, False)])
def test_generator_of_the_user_s_stands_where_it_stands_in_one_process(
    size: int, drop_last: bool, fetched: str
) -> None:
    """A sampler that is asked for one batch too many draws another permutation, in one process too."""

    def make() -> tuple[torch.Generator, RandomSampler]:
        generator = torch.Generator().manual_seed(1)
        return generator, RandomSampler(range(size), generator=generator)

    generator, sampler = make()
    alone = BatchSampler(sampler, 4, drop_last)
    limit = len(alone) if fetched == "up to the length" else None
    expected = [list(itertools.islice(alone, limit)) for _ in range(3)]
    made = [make() for _ in range(2)]
    remaining = iter(made)
    workers = workers_of(lambda: BatchSampler(next(remaining)[1], 2, drop_last), 2)
    for epoch in expected:
        dealt = workers.iterate(limit)
        assert [list(dict.fromkeys(itertools.chain(*parts))) for parts in zip(*dealt, strict=True)] == epoch
    assert [torch.equal(own.get_state(), generator.get_state()) for own, _ in made] == [True, True]


def test_generators_that_differ_follow_rank_0() -> None:
    seeds = iter([1, 2])

    def batches() -> BatchSampler:
        return BatchSampler(RandomSampler(range(8), generator=torch.Generator().manual_seed(next(seeds))), 2, False)

    expected = list(RandomSampler(range(8), generator=torch.Generator().manual_seed(1)))
    assert in_order(workers_of(batches, 2).iterate()) == expected


@pytest.mark.parametrize(("size", "waits"), [(8, False), (9, True), (10, False), (11, False)])
def test_evaluation_draws_ahead_only_where_the_last_batch_has_to_borrow(size: int, waits: bool) -> None:
    """Two workers with two samples each: of 9 samples one would be left for both."""
    workers = workers_of(lambda: BatchSampler(SequentialSampler(range(size)), 2, False), 2, borrow_samples=True)
    asked = [0, 0]

    def counting(dealt: DistributedBatchSampler) -> None:
        batches = dealt.batches

        def count() -> Iterator[Batch]:
            for batch in batches:
                asked[dealt.rank] += 1
                yield batch

        dealt._order = lambda position: count()  # type: ignore[method-assign]
        next(iter(dealt))

    workers.each(counting)
    assert asked == [4, 4] if waits else asked == [2, 2]


# ------------------------------------------------------------------------------------- samplers that divide themselves


class OfRank(Sampler[int]):
    """Takes every n-th sample of a permutation that all ranks draw alike."""

    def __init__(self, size: int, rank: int, ranks: int) -> None:
        self.size = size
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.ranks))

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.size).tolist()[self.rank :: self.ranks])


class Group:
    """Exchanges objects between ranks that run one after the other, by running all of them twice.

    Attributes:
        sent: what the ranks have sent in the first run, by the number of the exchange.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.sent: list[list[Any]] = []

    def run(self, function: Callable[[int, Callable[[Any], list[Any]]], Any]) -> list[Any]:
        returned: list[Any] = []
        for _ in range(3):  # an exchange may follow upon another
            sent: list[list[Any]] = [[] for _ in range(self.ranks)]
            returned = [function(rank, self._gather(sent[rank])) for rank in range(self.ranks)]
            self.sent = [list(of_all) for of_all in zip(*sent, strict=True)]
        return returned

    def _gather(self, own: list[Any]) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            own.append(value)
            number = len(own) - 1
            return self.sent[number] if number < len(self.sent) else [value] * self.ranks

        return gather


def own_parts(size: int, ranks: int, batch_size: int) -> tuple[list[list[Batch]], list[list[float]]]:
    """Return the batches and the weights that each rank gets of a sampler that divides itself."""
    states, lengths = seeded(3), [0] * ranks

    def iterate(rank: int, gather: Callable[[Any], list[Any]]) -> tuple[list[Batch], list[float]]:
        batches = BatchSampler(OfRank(size, rank, ranks), batch_size, False)
        length = max(-(-len(range(one, size, ranks)) // batch_size) for one in range(ranks))
        dealt = OwnPartBatchSampler(
            batches,
            ranks,
            rank,
            length=length,
            even_batches=True,
            borrow_samples=False,
            broadcast=lambda own: (states, None),
            gather=gather,
        )
        with random_states(seeded(rank)):
            drawn = list(dealt)
        lengths[rank] = len(dealt)
        return drawn, [dealt.weight_of(index) for index in range(len(drawn))]

    returned = Group(ranks).run(iterate)
    assert [len(drawn) for drawn, _ in returned] == lengths
    return [drawn for drawn, _ in returned], [weights for _, weights in returned]


@pytest.mark.parametrize(("size", "ranks", "batch_size"), [(16, 2, 2), (13, 2, 2), (15, 2, 4), (10, 3, 2), (7, 3, 3)])
def test_sampler_that_divides_itself_gives_every_sample_once_and_alike(size: int, ranks: int, batch_size: int) -> None:
    dealt, weights = own_parts(size, ranks, batch_size)
    counted = Counter(
        sample
        for batches, of_rank in zip(dealt, weights, strict=True)
        for batch, weight in zip(batches, of_rank, strict=True)
        if weight
        for sample in batch
    )
    assert counted == Counter(range(size))
    for parts, of_step in zip(zip(*dealt, strict=True), zip(*weights, strict=True), strict=True):
        total = sum(len(part) for part, weight in zip(parts, of_step, strict=True) if weight)
        per_sample = [weight / len(part) / ranks for part, weight in zip(parts, of_step, strict=True) if weight]
        assert per_sample == pytest.approx([1 / total] * len(per_sample))


def test_no_rank_waits_for_another_where_a_loader_is_empty() -> None:
    def broadcast(own: Any) -> Any:
        raise AssertionError("rank 0 does not begin it")

    options: dict[str, Any] = {"borrow_samples": False, "broadcast": broadcast, "gather": broadcast}
    batches = BatchSampler(range(0), 2, False)
    assert list(DistributedBatchSampler(batches, 2, 1, split=False, even_batches=False, **options)) == []
    assert list(OwnPartBatchSampler(batches, 2, 1, length=0, even_batches=False, **options)) == []


def test_sampler_that_divides_itself_is_as_long_on_all_ranks() -> None:
    options: dict[str, Any] = {"borrow_samples": False, "broadcast": list, "gather": list, "even_batches": False}
    assert len(OwnPartBatchSampler(BatchSampler(range(0), 2, False), 2, 1, length=1, **options)) == 1


def test_rank_without_any_sample_is_an_error() -> None:
    options: dict[str, Any] = {
        "length": 1,
        "even_batches": True,
        "borrow_samples": False,
        "gather": lambda sizes: [[1], sizes],
    }
    dealt = OwnPartBatchSampler([], 2, 1, broadcast=lambda own: own, **options)
    with pytest.raises(ConfigurationError, match="leaves rank 1 without any"):
        list(dealt)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("knows", [True, False])
def test_sampler_that_knows_its_rank_is_found_by_what_it_draws(knows: bool, wrapped: bool) -> None:
    states = seeded(3)

    def ask(rank: int, gather: Callable[[Any], list[Any]]) -> bool:
        sampler: Any = OfRank(12, rank, 2) if knows else LazySampler(12)
        if wrapped:
            sampler = BatchSampler(sampler, 2, False)
        with random_states(seeded(rank)) as own:
            before = next_numbers(own)
            found = divides_itself(sampler, None, lambda _: states, gather)
            assert next_numbers(lightning_trainer.collect_rng_states(include_cuda=False)) == before
        return found

    assert Group(2).run(ask) == [knows, knows]


@pytest.mark.parametrize("seed", ["of its own", "of the rank"])
def test_sampler_that_draws_the_same_samples_in_another_order_does_not_divide_them(seed: str) -> None:
    class Own(Sampler[int]):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __iter__(self) -> Iterator[int]:
            generator = np.random.default_rng(None if seed == "of its own" else self.rank)
            return iter(generator.permutation(100).tolist())

    def ask(rank: int, gather: Callable[[Any], list[Any]]) -> bool:
        return divides_itself(BatchSampler(Own(rank), 4, False), None, lambda own: own, gather)

    assert Group(2).run(ask) == [False, False]


def test_asking_a_sampler_does_not_use_it_up() -> None:
    class Counting(Sampler[int]):
        drawn = 0

        def __iter__(self) -> Iterator[int]:
            while True:
                self.drawn += 1
                assert self.drawn < 1000, "an endless order was drawn to its end"
                yield self.drawn

    sampler = Counting()
    assert not divides_itself(sampler, None, lambda own: own, lambda one: [one, one])
    assert sampler.drawn == 0
    assert not divides_itself((index for index in range(3)), None, lambda own: own, lambda one: [one, one])


def test_orders_that_differ_between_ranks_are_an_error_where_they_were_not_expected() -> None:
    def iterate(rank: int, gather: Callable[[Any], list[Any]]) -> list[Batch]:
        batches = ([index] for index in range(rank, 8, 2))
        options: dict[str, Any] = {"split": False, "even_batches": True, "borrow_samples": False, "gather": gather}
        return list(DistributedBatchSampler(batches, 2, rank, broadcast=lambda own: own, **options))

    with pytest.raises(ConfigurationError, match="another order on rank 1 than on rank 0"):
        Group(2).run(iterate)


def test_torch_s_own_samplers_are_not_compared() -> None:
    plain = [SequentialSampler(range(4)), RandomSampler(range(4)), SubsetRandomSampler(range(4))]
    assert all(is_plain(sampler) and is_plain(BatchSampler(sampler, 2, False)) for sampler in plain)
    assert not is_plain(LazyRandomSampler(range(4))) and not is_plain([[0, 1]])


def test_fingerprints_tell_indices_apart_and_not_how_they_are_kept() -> None:
    assert fingerprint([[0, 1]]) == fingerprint([np.array([0, 1])]) == fingerprint([torch.tensor([0, 1])])
    assert fingerprint([[0, 1]]) != fingerprint([[0, 2]]) != fingerprint([[0], [2]])
    assert fingerprint([object()]) == fingerprint([object()])


def test_code_that_asks_the_sampler_gets_what_the_user_s_has() -> None:
    (dealt,) = workers_of(lambda: SizedBatches([2, 1]), 1).dealt
    assert dealt.sizes == [2, 1]
    with pytest.raises(AttributeError, match="colour"):
        _ = dealt.colour


@pytest.mark.parametrize("size", range(1, 14))
def test_weights_are_known_before_batches_are_drawn(size: int) -> None:
    workers = workers_of(lambda: BatchSampler(SequentialSampler(range(size)), 2, False), 3)
    number = [len(batches) for batches in workers.iterate()][0]
    drawn = [[dealt.weight_of(index) for dealt in workers.dealt] for index in range(number)]
    assert [workers.dealt[0].planned_weights(index) for index in range(number)] == [
        pytest.approx(weights) for weights in drawn
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumes_in_loaders_with_processes(num_workers: int) -> None:
    """These begin to iterate twice, and ask only the second iterator."""

    def loader(sampler: DistributedBatchSampler) -> DataLoader:
        return DataLoader(torch.arange(40), batch_sampler=sampler, num_workers=num_workers)  # type: ignore[arg-type]

    def sampler() -> DistributedBatchSampler:
        batches = BatchSampler(RandomSampler(range(40)), 4, False)
        options = {"split": False, "even_batches": True, "borrow_samples": False}
        return DistributedBatchSampler(batches, 2, 0, broadcast=lambda value: value, **options)

    torch.manual_seed(3)
    first = sampler()
    whole = [batch.tolist() for batch in loader(first)]
    torch.manual_seed(4)
    later = sampler()
    later.resume(first.position(), 2)
    resumed = loader(later)
    assert [batch.tolist() for batch in resumed] == whole[2:]
    assert len([batch.tolist() for batch in resumed]) == len(whole)  # the next epoch is a whole one
