"""Random numbers that ranks draw by themselves, and together; the ranks run one after the other in this process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from itwinai.compat import lightning_trainer
from itwinai.data.rank_streams import RankSeed, RankStreams, SharedIterator, seed_generators, seed_of_rank
from itwinai.data.rng_state import pack_random_states, unpack_random_states
from tests.data.test_samplers import draw, random_states, seeded


def streams_of(states: dict[str, Any], rank: int) -> RankStreams:
    """Return the streams of one of two ranks, where rank 0 is in these states whenever it is asked."""
    return RankStreams(rank, 2, lambda own: own if rank == 0 else states)


def begun(rank: int, seed: int = 4) -> tuple[RankStreams, tuple[float, float, float]]:
    """Begin the stream of a rank, and return what it draws first."""
    with random_states(seeded(seed)) as states:
        streams = streams_of(dict(states), rank)
        streams.begin()
        return streams, draw()


def test_rank_0_continues_and_the_others_begin_streams_of_their_own() -> None:
    with random_states(seeded(4)):
        expected = draw()
    drawn = [begun(rank)[1] for rank in (0, 1, 2)]
    assert drawn[0] == expected
    numbers = [number for of_rank in drawn for number in of_rank]
    assert len(set(numbers)) == len(numbers)
    assert begun(1)[1] == drawn[1] != begun(1, seed=5)[1]


def test_all_ranks_draw_together_again() -> None:
    with random_states(seeded(4)) as states:
        streams = streams_of(dict(states), 1)
        streams.begin()
        own = draw()
        with streams.shared():
            shared = draw()
        next_own = draw()
        streams.end()
        ended = draw()
    with random_states(seeded(4)):
        assert shared == ended == draw()
    assert own != next_own
    with random_states(seeded(4)) as states:  # what was drawn together has not moved the rank's own stream
        streams = streams_of(dict(states), 1)
        streams.begin()
        assert (draw(), draw()) == (own, next_own)


def test_nothing_is_exchanged_before_training() -> None:
    def broadcast(own: Any) -> Any:
        raise AssertionError("the others do not come here")

    streams = RankStreams(1, 2, broadcast)
    with streams.shared():
        draw()
    streams.end()
    RankStreams(0, 1, broadcast).begin()


def test_seed_follows_from_every_generator_and_survives_a_checkpoint() -> None:
    with random_states(seeded(4)):
        states = lightning_trainer.collect_rng_states(include_cuda=False)
        seed = seed_of_rank(states, 1)
        assert seed_of_rank(unpack_random_states(pack_random_states()), 1) == seed != seed_of_rank(states, 2)
        for drawing in (lambda: torch.rand(()), random.random, np.random.rand):
            drawing()
            changed = seed_of_rank(lightning_trainer.collect_rng_states(include_cuda=False), 1)
            assert changed != seed
            seed = changed


class Draws(IterableDataset):
    """Draws each sample when it is asked for."""

    def __iter__(self) -> Iterator[float]:
        return (float(torch.rand(())) for _ in range(4))


def iterate(rank: int, between: Callable[[], Any], seed: int = 4) -> list[float]:
    """Iterate in the stream of two ranks, where rank 0 is in the states of a seed."""
    with random_states(seeded(seed if rank == 0 else seed + 1)):
        leading = seeded(seed)
        shared = SharedIterator(lambda: iter(Draws()), streams_of(leading, rank))
        drawn = []
        for value in shared:
            drawn.append(value)
            between()
        return drawn


def test_iterable_datasets_draw_the_same_whatever_their_ranks_draw_between() -> None:
    with random_states(seeded(4)):
        expected = list(Draws())
    for rank in (0, 1):
        assert iterate(rank, lambda: None) == expected
        assert iterate(rank, lambda rank=rank: [draw() for _ in range(1 + rank)]) == expected  # type: ignore[misc]


def test_rank_0_moves_on_as_one_process_and_the_others_keep_their_place() -> None:
    with random_states(seeded(4)):
        list(Draws())
        expected = draw()
    with random_states(seeded(4)) as states:
        list(SharedIterator(lambda: iter(Draws()), streams_of(dict(states), 0)))
        assert draw() == expected
    with random_states(seeded(5)):
        expected = draw()
    with random_states(seeded(5)):
        list(SharedIterator(lambda: iter(Draws()), streams_of(seeded(4), 1)))
        assert draw() == expected


def test_states_of_a_checkpoint_begin_the_stream_again() -> None:
    with random_states(seeded(4)):
        streams = RankStreams(0, 2, lambda own: own)
        shared = SharedIterator(lambda: iter(Draws()), streams)
        next(shared)
        lightning_trainer.set_rng_states(seeded(9))
        streams.restarts += 1
        drawn = next(shared)
    with random_states(seeded(9)):
        assert drawn == float(torch.rand(()))


class Noise(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[float, float, float, int]:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return *draw(), info.seed


def test_processes_of_loaders_draw_other_numbers_on_each_rank() -> None:
    def first(**options: Any) -> list[list[float]]:
        torch.manual_seed(3)
        return [[float(x) for x in batch] for batch in DataLoader(Noise(), 1, num_workers=1, **options)]

    stock, rank_1, rank_2 = first(), first(worker_init_fn=RankSeed(1, None)), first(worker_init_fn=RankSeed(2, None))
    assert rank_1 == first(worker_init_fn=RankSeed(1, None))
    numbers = [number for drawn in (stock, rank_1, rank_2) for sample in drawn for number in sample[:3]]
    assert len(set(numbers)) == len(numbers)
    assert len({drawn[0][3] for drawn in (stock, rank_1, rank_2)}) == 3  # and say so
    fixed = first(worker_init_fn=RankSeed(1, lambda worker_id: seed_generators(worker_id)))
    with random_states(seeded(0)):
        seed_generators(0)
        assert fixed[0][0] == draw()[0]  # the user's own function has the last word


class FakeCuda:
    """A stand-in for torch's generators of CUDA: a state is a tensor for each device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int, current: int, initialized: bool) -> None:
        self.states = [torch.tensor([device], dtype=torch.uint8) for device in range(devices)]
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: self.states[current])
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", self.start_the_driver)

    def start_the_driver(self) -> list[torch.Tensor]:
        raise AssertionError("the driver would be started")


def test_a_run_on_the_cpu_does_not_start_the_driver_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, devices=2, current=0, initialized=False)
    assert "torch.cuda" not in pack_random_states()


def test_the_generator_of_a_workers_gpu_continues_on_another_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, devices=4, current=2, initialized=True)
    packed = pack_random_states()
    assert [state.tolist() for state in packed["torch.cuda"]] == [[2]]
    for devices in (1, 3):
        FakeCuda(monkeypatch, devices=devices, current=0, initialized=True)
        assert [state.tolist() for state in unpack_random_states(packed)["torch.cuda"]] == [[2]] * devices
    FakeCuda(monkeypatch, devices=0, current=0, initialized=False)
    assert "torch.cuda" not in unpack_random_states(packed)
    of_all = {**packed, "torch.cuda": [torch.tensor([0]), torch.tensor([1])]}  # as earlier versions packed them
    FakeCuda(monkeypatch, devices=2, current=0, initialized=True)
    assert [state.tolist() for state in unpack_random_states(of_all)["torch.cuda"]] == [[0], [1]]
    FakeCuda(monkeypatch, devices=3, current=0, initialized=True)
    assert "torch.cuda" not in unpack_random_states(of_all)
