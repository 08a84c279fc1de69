"""What `itwinai.compat.torch_dataloaders` takes for granted about the iterator of a DataLoader without processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from itwinai.compat import torch_dataloaders


class Stream(IterableDataset[int]):
    """Counts to three."""

    def __iter__(self) -> Any:
        return iter(range(3))


class OwnLoader(DataLoader[int]):
    """A class of the user's."""


def test_loaders_that_can_be_hastened() -> None:
    can = torch_dataloaders.is_single_process
    assert can(DataLoader([1, 2])) and can(DataLoader([1, 2], batch_size=None))
    assert not can(DataLoader([1, 2], num_workers=1))
    assert not can(DataLoader(Stream()))
    assert not can(OwnLoader([1, 2]))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_same_batches_twice(batch_size: int | None) -> None:
    loader: Any = DataLoader(torch.arange(5), batch_size=batch_size, shuffle=True, generator=torch.Generator())
    loader.generator.manual_seed(1)
    expected = [[batch.tolist() for batch in loader] for _ in range(2)]
    loader.generator.manual_seed(1)
    assert [[batch.tolist() for batch in torch_dataloaders.hasten(iter(loader))] for _ in range(2)] == expected


def test_length_and_end_are_kept() -> None:
    iterator = torch_dataloaders.hasten(iter(DataLoader([1, 2, 3])))
    assert len(iterator) == 3
    assert next(iterator) == 1
    assert iterator._num_yielded == 1
    assert [int(one) for one in iterator] == [2, 3]
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_profiler_sees_each_batch() -> None:
    iterator = torch_dataloaders.hasten(iter(DataLoader([1, 2, 3])))
    next(iterator)
    with torch.autograd.profiler.profile() as profile:
        assert next(iterator) == 2
    assert any("DataLoader" in event.name for event in profile.function_events)


def test_another_fetcher_is_asked() -> None:
    class Doubling:
        def __init__(self, fetcher: Any) -> None:
            self.fetcher = fetcher

        def fetch(self, indices: Any) -> Any:
            return 2 * self.fetcher.fetch(indices)

    iterator = torch_dataloaders.hasten(iter(DataLoader([1, 2, 3])), Doubling)
    assert [int(one) for one in iterator] == [2, 4, 6]


def test_other_iterators_stay_as_they_are() -> None:
    batches = iter([1])
    assert torch_dataloaders.hasten(batches) is batches
