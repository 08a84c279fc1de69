"""Gradients of all kinds are averaged after a backward pass; the mean over several ranks is tested in situations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from itwinai.strategies import gradient_averaging
from itwinai.strategies.gradient_averaging import GradientAverager, average_gradients, unused_error


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let one process stand for two with the same gradients; keep the sizes of what they exchange."""
    sizes: list[int] = []
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    plain = dist.all_reduce

    def all_reduce(tensor: Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM, async_op: bool = False) -> dist.Work | None:
        if op == dist.ReduceOp.SUM:
            sizes.append(tensor.numel() if not tensor.is_sparse else -1)
            tensor.mul_(2)
        return plain(tensor, op=op, async_op=async_op)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    yield sizes
    dist.destroy_process_group()


def parameters_of_all_kinds() -> dict[str, nn.Parameter]:
    tensors = {
        "matrix": torch.rand(3, 2),
        "transposed": torch.rand(3, 2).t(),
        "image": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.rand(()),
        "empty": torch.rand(0, 2),
        "complex": torch.rand(2, dtype=torch.complex64),
        "double": torch.rand(2, dtype=torch.float64),
        "coarse": torch.rand(2, dtype=torch.bfloat16),
    }
    return {name: nn.Parameter(tensor) for name, tensor in tensors.items()}


def test_gradients_of_all_kinds_keep_their_places(doubling: list[int]) -> None:
    parameters = parameters_of_all_kinds()
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    average_gradients(parameters.values())
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, before[name], msg=name)
        assert parameter.grad.stride() == before[name].stride()
    assert sorted(doubling) == [2, 2, 6 + 6 + 96 + 1 + 4]  # one exchange for each type


def test_exchanges_are_of_limited_size(doubling: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_averaging, "BUCKET", 40)
    parameters = [nn.Parameter(torch.rand(4)) for _ in range(5)]
    for parameter in parameters:
        parameter.grad = torch.ones(4)
    average_gradients(parameters)
    assert doubling == [12, 8]


def test_embedding_stays_sparse(doubling: list[int]) -> None:
    table = nn.Embedding(5, 2, sparse=True)
    averager = GradientAverager(dict(table.named_parameters()), torch.device("cpu"), lambda: 1.0)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert table.weight.grad.is_sparse and doubling == [-1]
    assert table.weight.grad.to_dense()[:, 0].tolist() == [0.0, 2.0, 0.0, 1.0, 0.0]
    averager.remove()


def test_what_has_no_gradient_is_named_and_left_alone(doubling: list[int]) -> None:
    net = nn.ModuleDict({"used": nn.Linear(1, 1), "spare": nn.Linear(1, 1), "frozen": nn.Linear(1, 1)})
    net["frozen"].requires_grad_(False)
    averager = GradientAverager(dict(net.named_parameters()), torch.device("cpu"), lambda: 1.0)
    assert not averager.averaged
    net["used"](torch.ones(1, 1)).sum().backward()
    assert averager.averaged and averager.unused == ["spare.weight", "spare.bias"]
    assert net["spare"].weight.grad is None
    averager.remove()


def test_what_has_accumulated_before_is_averaged_too(doubling: list[int]) -> None:
    net = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    net[0](torch.ones(1, 1)).sum().backward()
    net[0].requires_grad_(False)
    averager = GradientAverager(dict(net.named_parameters()), torch.device("cpu"), lambda: 1.0)
    for exchanged in (2, 1):
        net[1](torch.ones(1, 1)).sum().backward()
        assert doubling.pop() == exchanged
    assert averager.unused == []
    averager.remove()


def test_error_names_the_first_of_many() -> None:
    message = str(unused_error([f"layer.{number}" for number in range(9)], "'name'"))
    assert message.startswith("9 parameters got no gradient in a step: layer.0, ")
    assert "layer.7, ..." in message and "layer.8" not in message and message.endswith("or set strategy='name'.")
