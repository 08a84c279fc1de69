"""What follows parameters and backward passes notices every change, and every pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itwinai.errors import ConfigurationError
from itwinai.strategies.backward import BackwardHooks, Change, ParameterMonitor, refuse_lazy


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)).sum()


class Passes:
    """Notes what has been reached at the end of each pass."""

    def __init__(self, net: Net, weight: float = 1.0) -> None:
        self.ended: list[set[str]] = []
        self.hooks = BackwardHooks(dict(net.named_parameters()), self.end, lambda: weight)

    def end(self) -> None:
        self.ended.append(set(self.hooks.reached))


@pytest.fixture
def watch() -> Iterator[ParameterMonitor]:
    watch = ParameterMonitor(Net())
    yield watch
    watch.end()


ALL = {"one.weight", "one.bias", "two.weight", "two.bias"}
X = torch.ones(3, 2)


def test_flags_and_registrations_are_noticed(watch: ParameterMonitor) -> None:
    net = watch.module
    assert not watch.may_have_changed() and not watch.look()
    net.one.requires_grad_(False)
    assert watch.may_have_changed()
    assert watch.look() == Change((), (), (), ("one.weight", "one.bias"))
    net.one.weight.requires_grad_(True)
    assert watch.look() == Change((), (), ("one.weight",), ())
    net.two = nn.Linear(2, 1, bias=False)
    assert watch.may_have_changed() and watch.new() == ("two.weight",)
    assert watch.look() == Change(("two.weight",), ("two.bias",), (), ())
    assert not watch.may_have_changed() and watch.new() == ()


def test_modules_elsewhere_change_nothing(watch: ParameterMonitor) -> None:
    nn.Linear(1, 1)
    assert watch.new() == () and not watch.look()


def test_nothing_is_noticed_after_the_end(watch: ParameterMonitor) -> None:
    watch.end()
    watch.module.one.extra = nn.Parameter(torch.ones(1))
    assert not watch.may_have_changed()


def test_lazy_layers_are_named() -> None:
    with pytest.raises(ConfigurationError, match="0.weight, 0.bias of Sequential have no shape yet"):
        refuse_lazy(nn.Sequential(nn.LazyLinear(1)))


def test_pass_of_the_module_ends_before_backward_returns_and_is_weighed() -> None:
    net = Net()
    passes = Passes(net, weight=0.25)
    net(X).backward()
    assert passes.ended == [ALL] and not passes.hooks.reached
    assert net.two.bias.grad.item() == 0.75
    net.two.requires_grad_(False)
    net(X).backward()
    assert passes.ended[1:] == [{"one.weight", "one.bias"}]


def test_pass_of_the_strategy_is_weighed_already() -> None:
    net = Net()
    passes = Passes(net, weight=0.25)
    loss = net(X)
    passes.hooks.begin(loss)
    loss.backward()
    assert passes.ended == [ALL]  # before the hooks that run after backward
    passes.hooks.end()
    assert passes.ended == [ALL]
    assert net.two.bias.grad.item() == 3.0


def test_backward_of_something_else_ends_with_the_announced_pass() -> None:
    net = Net()
    passes = Passes(net)
    passes.hooks.begin(net(X))
    net(X).backward()
    assert passes.ended == []
    passes.hooks.end()
    assert passes.ended == [ALL]


def test_parameter_that_was_frozen_is_followed() -> None:
    net = Net()
    net.one.requires_grad_(False)
    passes = Passes(net)
    assert not net.one.weight.requires_grad
    net.one.requires_grad_(True)
    net(X).backward()
    assert passes.ended == [ALL]


def test_passes_inside_another_belong_to_it() -> None:
    net = Net()
    passes = Passes(net)
    x = X.clone().requires_grad_(True)
    for repeated in (True, False):
        hidden = checkpoint(net.one, x, use_reentrant=True)
        hidden = checkpoint(net.one, hidden, use_reentrant=True) if repeated else hidden
        loss = net.two(hidden).sum()
        seen: list[tuple[bool, bool]] = []
        passes.hooks._finish = lambda seen=seen: seen.append((passes.hooks.repeated, passes.hooks.nested))
        passes.hooks.begin(loss)
        loss.backward()
        passes.hooks.end()
        assert seen == [(repeated, True)]


def test_nothing_happens_while_gradients_accumulate() -> None:
    net = Net()
    passes = Passes(net)
    passes.hooks.paused = True
    loss = net.one(X).sum()
    passes.hooks.begin(loss)
    loss.backward()
    passes.hooks.end()
    assert passes.ended == []
    passes.hooks.paused = False
    loss = net.two(X).sum()
    passes.hooks.begin(loss)
    loss.backward()
    passes.hooks.end()
    assert passes.ended == [ALL]  # what only an earlier pass has reached is exchanged too


def test_gradients_that_are_only_asked_for_are_left_alone() -> None:
    net = Net()
    passes = Passes(net, weight=0.25)
    (gradient,) = torch.autograd.grad(net(X), net.two.bias)
    assert gradient.item() == 3.0 and passes.ended == []


def test_hooks_can_be_removed() -> None:
    net = Net()
    passes = Passes(net)
    passes.hooks.remove()
    net(X).backward()
    assert passes.ended == []
