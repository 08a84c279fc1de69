"""Batches that are fetched as a whole are those that torch puts together of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from itwinai.compat import torch_dataloaders
from itwinai.data.whole_batches import WholeBatches, fetch_quickly

SHAPES = ((), (3,), (1, 2, 2), (0,))
TYPES = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.complex64)


def same(left: Any, right: Any) -> bool:
    return (
        type(left) is type(right) is list
        and len(left) == len(right)
        and all(
            type(a) is type(b) is Tensor
            and a.dtype == b.dtype
            and a.is_contiguous()
            and b.is_contiguous()
            and torch.equal(a, b)
            for a, b in zip(left, right, strict=True)
        )
    )


@st.composite
def datasets(draw: Any) -> Any:
    size = draw(st.integers(1, 12))
    tensors = [
        torch.arange(size * int(np.prod(shape))).reshape(size, *shape).to(draw(st.sampled_from(TYPES)))
        for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    ]
    if draw(st.booleans()) and tensors[0].dim() == 4:
        tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    if draw(st.booleans()) and tensors[-1].dim() == 2:
        tensors[-1] = tensors[-1].t().contiguous().t()
    dataset: Any = TensorDataset(*tensors)
    for _ in range(draw(st.integers(0, 2))):
        indices: Any = draw(st.lists(st.integers(-len(dataset), len(dataset) - 1), min_size=1, max_size=15))
        kind = draw(st.sampled_from((list, tuple, np.array, torch.tensor)))
        dataset = Subset(dataset, kind(indices))
    return dataset


@settings(max_examples=300, deadline=None)
@given(datasets(), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_batches_are_those_of_torch(dataset: Any, batch_size: int, drop_last: bool, seed: int) -> None:
    def loader() -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(dataset, batch_size, shuffle=True, drop_last=drop_last, generator=generator)

    quick = fetch_quickly(loader())
    expected = loader()
    for _ in range(2):
        ours, theirs = list(quick), list(expected)
        assert len(ours) == len(theirs) == len(quick)
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def fetched_alone(dataset: Any, indices: Any, **options: Any) -> list[Any]:
    """Fetch a batch; return what was fetched sample by sample."""

    class Alone:
        def __init__(self) -> None:
            self.dataset = dataset
            self.seen: list[Any] = []

        def fetch(self, indices: Any) -> None:
            self.seen.append(indices)

    fetcher = Alone()
    WholeBatches(fetcher).fetch(indices)
    return fetcher.seen


def test_what_is_left_to_torch() -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    whole = TensorDataset(rows)
    assert not fetched_alone(whole, [0, 3, 3])
    assert not fetched_alone(Subset(whole, np.array([3, 2])), [0, 1])  # type: ignore[arg-type]
    for dataset, indices in (
        (whole, (0, 1)),
        (whole, [0, 3, -1]),
        (whole, [True, False]),
        (whole, [torch.tensor(1)]),
        (whole, [slice(2)]),
        (TensorDataset(rows.t()), [0]),
        (TensorDataset(rows.to_sparse()), [0]),
        (TensorDataset(torch.nn.Parameter(rows)), [0]),
        ([(one,) for one in rows], [0]),
    ):
        assert fetched_alone(dataset, indices) == [indices], (dataset, indices)


def test_what_is_out_of_range_raises_what_torch_raises() -> None:
    dataset = TensorDataset(torch.arange(4))
    with pytest.raises(IndexError) as expected:
        list(DataLoader(dataset, 2, sampler=[0, 7]))
    with pytest.raises(IndexError) as raised:
        list(fetch_quickly(DataLoader(dataset, 2, sampler=[0, 7])))
    assert str(raised.value) == str(expected.value)


class Own(TensorDataset):
    """Changes its samples, which only its method knows."""

    def __getitem__(self, index: Any) -> Any:
        return tuple(-tensor for tensor in super().__getitem__(index))


def test_only_plain_loaders_of_tensors_are_fetched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    makes: list[Any] = []
    hasten = torch_dataloaders.hasten
    monkeypatch.setattr(torch_dataloaders, "hasten", lambda made, kind=None: makes.append(kind) or hasten(made, kind))
    data = TensorDataset(torch.arange(4.0))

    def collate(samples: Any) -> Any:
        return default_collate(samples)

    assert [batch.tolist() for (batch,) in fetch_quickly(DataLoader(data, 2))] == [[0, 1], [2, 3]]
    assert [batch.tolist() for (batch,) in fetch_quickly(DataLoader(Own(*data.tensors), 2))] == [[0, -1], [-2, -3]]
    list(fetch_quickly(DataLoader(data, 2, collate_fn=collate)))
    list(fetch_quickly(DataLoader(data, batch_size=None)))
    assert makes == [WholeBatches, None, None, None]
    with_processes = DataLoader(data, 2, num_workers=1)
    assert fetch_quickly(with_processes) is with_processes


def test_a_dataset_that_changes_is_read_as_it_is() -> None:
    data = TensorDataset(torch.arange(4.0))
    batches = iter(fetch_quickly(DataLoader(data, 2)))
    next(batches)
    data.tensors[0][2:] = 9
    assert next(batches)[0].tolist() == [9, 9]
