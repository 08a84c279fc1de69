"""Workers that drift apart are told so, with names."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from itwinai.errors import DriftError
from itwinai.strategies import drift

TRAINER: Any = SimpleNamespace(current_epoch=3, global_step=40, lr_scheduler_configs=[])


class Ranks:
    """Stands for a strategy whose other ranks hold modules that are given."""

    root_device = torch.device("cpu")

    def __init__(self, *others: nn.Module) -> None:
        self.others = others
        self.exchanges = 0

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        self.exchanges += 1
        return torch.stack([tensor, *(_digest(other) for other in self.others)])

    def gather_objects(self, value: Any) -> list[Any]:
        sums = [{name: int(total) for name, total in drift.bit_sums(other).items()} for other in self.others]
        return [value, *((theirs, value[1]) for theirs in sums)]


def _digest(module: nn.Module) -> Tensor:
    kept: list[Tensor] = []

    class Alone(Ranks):
        def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
            kept.append(tensor)
            return tensor[None]

    drift.compare(module, [torch.optim.SGD(module.parameters(), lr=0.1)], Alone())
    return kept[0]


def net() -> nn.Module:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module.odd = nn.ParameterList(
        [
            nn.Parameter(torch.rand(2, dtype=torch.complex64).conj()),
            nn.Parameter(torch.tensor(1.5, dtype=torch.float64)),
            nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
            nn.Parameter(torch.rand(2, 3).t()),
            nn.Parameter(torch.empty(0)),
        ]
    )
    module.mask = nn.Parameter(torch.tensor([True, False]), requires_grad=False)
    module.trainer = TRAINER
    return module


def compare(*others: nn.Module) -> Ranks:
    ranks, mine = Ranks(*others), net()
    drift.compare(mine, [torch.optim.SGD(mine.parameters(), lr=0.1)], ranks)
    return ranks


def test_equal_ranks_exchange_once() -> None:
    assert compare(net(), net()).exchanges == 1


def test_buffers_are_each_rank_own() -> None:
    other = net()
    other[1].running_mean.add_(1.0)
    compare(other)


@pytest.mark.parametrize("name", [name for name, parameter in net().named_parameters() if parameter.numel()])
def test_smallest_change_is_found(name: str) -> None:
    other = net()
    with torch.no_grad():
        values = other.get_parameter(name)
        if values.dtype == torch.bool:
            values.logical_not_()[0] = values[1]
        elif values.is_complex():
            values[0] *= 1.0001
        else:
            values.copy_(torch.nextafter(values, torch.full_like(values, 9.0)))
    with pytest.raises(DriftError, match=f"1 of 10 parameters .* epoch 3, step 40: {name}; rank 2 differs from rank 0"):
        compare(net(), other)


def test_parameters_that_ddp_ignores_are_ignored() -> None:
    mine, other = net(), net()
    with torch.no_grad():
        other[0].bias.add_(1.0)
    for module in (mine, other):
        module._ddp_params_and_buffers_to_ignore = ["0.bias"]
    drift.compare(mine, [torch.optim.SGD(mine.parameters(), lr=0.1)], Ranks(other))


def test_other_shape_or_freedom_is_found() -> None:
    mine = ({"a": (2, 3), "b": (1,)}, [0.1])
    drift.compare_trained([mine, ({"a": [2, 3], "b": [1]}, [0.1])], TRAINER)
    for others in ({"a": (2, 3)}, {"a": (2, 3), "b": (2,)}):
        with pytest.raises(
            DriftError, match="Not all ranks train the same parameters in epoch 3, step 40: b exist, have"
        ):
            drift.compare_trained([mine, (others, [0.1])], TRAINER)


def test_rates_name_what_is_monitored() -> None:
    monitor = SimpleNamespace(reduce_on_plateau=True, monitor="val_loss")
    trainer: Any = SimpleNamespace(current_epoch=3, global_step=40, lr_scheduler_configs=[monitor])
    with pytest.raises(
        DriftError, match=r"0.1 on rank 0; 0.05 on rank 1. A scheduler monitors 'val_loss': log it with"
    ):
        drift.compare_trained([({}, [0.1]), ({}, [0.05])], trainer)
    with pytest.raises(DriftError, match="Compute them from values that are equal on all ranks"):
        drift.compare_trained([({}, [0.1]), ({}, [0.05])], TRAINER)


def test_gathering_by_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    other = threading.Thread(target=drift.gather, args=(store, 1, 2, [1, ["b"]]))
    other.start()
    assert drift.gather(store, 0, 2, [0, ["a"]]) == [[0, ["a"]], [1, ["b"]]]
    other.join()
    monkeypatch.setattr(drift, "PATIENCE", timedelta(milliseconds=50))
    with pytest.raises(DriftError, match="Rank 0 has frozen.*rank 1 has not"):
        drift.gather(dist.HashStore(), 0, 2, [0])
