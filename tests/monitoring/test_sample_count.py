"""The samples of a fit are told from its loader, without counting in any step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from itwinai.data.samplers import DistributedBatchSampler
from itwinai.monitoring.sample_count import trained_samples, why_unknown

DATA = TensorDataset(torch.zeros(103, 1))


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(103))


def dealt(batch: int, workers: int, split: bool) -> DataLoader:
    batches = BatchSampler(SequentialSampler(DATA), batch, drop_last=False)
    options = {"split": split, "even_batches": True, "borrow_samples": False, "broadcast": lambda value: value}
    return DataLoader(DATA, batch_sampler=DistributedBatchSampler(batches, workers, 0, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("begun", "done", "expected"),
    [
        (0, 13, 103),
        (0, 26, 206),
        (0, 12, 96),
        (0, 20, 103 + 7 * 8),
        (5, 8, 103 - 5 * 8),  # the rest of an epoch that another run had begun
        (13, 13, 103),
        (12, 2, 7 + 8),
        (0, 0, 0),
    ],
)
def test_samples_of_whole_epochs_and_parts_of_them(begun: int, done: int, expected: int) -> None:
    assert trained_samples([DataLoader(DATA, batch_size=8)], 1, 13, begun, done) == expected


def test_samples_of_several_workers() -> None:
    assert trained_samples([dealt(4, 2, split=False)], 2, 13, 0, 13) == 103
    assert trained_samples([dealt(8, 2, split=True)], 2, 13, 0, 14) == 103 + 8
    sampler = DistributedSampler(DATA, num_replicas=2, rank=0)
    assert trained_samples([DataLoader(DATA, batch_size=4, sampler=sampler)], 2, 13, 0, 13) == 104  # one twice


def test_epochs_that_are_not_the_whole_data() -> None:
    assert trained_samples([DataLoader(DATA, batch_size=8)], 1, 5, 0, 10) == 80  # limit_train_batches=5
    assert trained_samples([DataLoader(DATA, batch_size=8, drop_last=True)], 1, 12, 0, 12) == 96
    longer = WeightedRandomSampler([1.0] * 103, num_samples=20)
    assert trained_samples([DataLoader(DATA, batch_size=8, sampler=longer)], 1, 3, 0, 3) == 20


def test_data_without_length() -> None:
    assert trained_samples([DataLoader(Stream(), batch_size=8)], 1, math.inf, 0, 4) == 32


def test_what_nobody_can_tell() -> None:
    assert trained_samples([DataLoader(Stream(), batch_size=None)], 1, math.inf, 0, 4) is None
    assert trained_samples([DataLoader(DATA, batch_size=8)] * 2, 1, 13, 0, 13) is None
    assert trained_samples([], 1, 13, 0, 0) is None
    assert trained_samples([[1, 2, 3]], 1, 3, 0, 3) is None


def test_why_the_number_is_not_known() -> None:
    class Batches:
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[1, 2]])

    one = DataLoader(DATA, batch_size=8)
    for loaders, reason in (
        ([one, one], "a batch comes from 2 loaders"),
        ([DataLoader(DATA, batch_size=None)], "the DataLoader has batch_size=None"),
        ([DataLoader(DATA, batch_sampler=Batches())], "batch sampler, of class Batches, has no batch_size"),  # type: ignore[arg-type]
        ([[1, 2]], "of class list, has no batch_size"),
    ):
        assert trained_samples(loaders, 1, 13, 0, 13) is None  # type: ignore[arg-type]
        assert reason in why_unknown(loaders)  # type: ignore[arg-type]
