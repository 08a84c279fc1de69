"""What `itwinai.compat.torch_steps` takes for granted: the same gradients, weights and calls as torch's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from itwinai.compat import torch_steps


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, generator=generator)) for _ in range(3)]


def spans(function: Callable[[], Any]) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        function()
    return {event.name for event in profile.function_events}


# -------------------------------------------------------------------------------------------------------- backward


def test_backward_gives_the_same_gradients() -> None:
    (one, two), backward = parameters()[:2], torch_steps.backward_call()
    expected = torch.autograd.grad((one * two).sin().sum(), (one, two))
    for factor in (1, 2):  # the second adds up
        backward((one * two).sin().sum())
        for parameter, gradient in zip((one, two), expected, strict=True):
            assert parameter.grad is not None and torch.equal(parameter.grad, factor * gradient)


def test_backward_of_a_loss_that_a_hook_scales_in_place() -> None:
    parameter, backward = nn.Parameter(torch.ones(())), torch_steps.backward_call()
    for _ in range(2):
        parameter.grad = None
        loss = parameter * 3
        loss.register_hook(lambda gradient: gradient.mul_(2))
        backward(loss)
        assert parameter.grad == 6


def test_backward_of_a_leaf() -> None:
    parameter, backward = nn.Parameter(torch.ones(())), torch_steps.backward_call()
    backward(parameter)
    backward(parameter)
    assert parameter.grad == 2


@pytest.mark.parametrize(
    "loss",
    [
        lambda: nn.Parameter(torch.ones(2)) * 2,
        lambda: torch.ones(()),
        lambda: nn.Parameter(torch.ones((), dtype=torch.complex64)) * 2,
    ],
    ids=["vector", "no graph", "complex"],
)
def test_backward_raises_what_torch_raises(loss: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError) as expected:
        loss().backward()
    with pytest.raises(RuntimeError) as raised:
        torch_steps.backward_call()(loss())
    assert str(raised.value) == str(expected.value)


def test_backward_within_a_transform_raises_what_torch_raises() -> None:
    def differentiated(value: Tensor) -> Tensor:
        loss = (value * nn.Parameter(torch.ones(()))).sum()
        torch_steps.backward_call()(loss)
        return loss

    with pytest.raises(RuntimeError, match="functorch transform"):
        torch.func.grad(differentiated)(torch.ones(()))


@pytest.mark.parametrize("owner", [Tensor, torch.autograd], ids=["Tensor", "torch.autograd"])
def test_backward_that_someone_has_replaced_is_called(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(owner, "backward", lambda *args, **kwargs: called.append(args))
    torch_steps.backward_call()(nn.Parameter(torch.ones(())) * 2)
    assert len(called) == 1


# ------------------------------------------------------------------------------------------------------- zero_grad


def test_gradients_are_cleared_in_all_groups() -> None:
    given = parameters()
    groups: list[dict[str, Any]] = [{"params": given[:1]}, {"params": given[1:], "lr": 1.0}]
    optimizer = SGD(groups, lr=0.1)
    clear = torch_steps.zero_grad_call(optimizer)
    added = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [added]})
    for parameter in (*given, added):
        parameter.grad = torch.ones(3)
    clear()
    assert all(parameter.grad is None for parameter in (*given, added))


class Halving(SGD):
    """Has a ``zero_grad`` and a ``step`` of its own."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 2

    def step(self, closure: Any = None) -> Any:
        self.stepped = True
        return super().step(closure)


def test_zero_grad_of_a_subclass_or_of_the_object_is_called() -> None:
    (parameter,) = parameters()[:1]
    parameter.grad = torch.ones(3)
    torch_steps.zero_grad_call(Halving([parameter], lr=0.1))()
    assert torch.equal(parameter.grad, torch.full((3,), 0.5))

    optimizer, called = SGD([parameter], lr=0.1), list[int]()
    clear = torch_steps.zero_grad_call(optimizer)
    vars(optimizer)["zero_grad"] = lambda: called.append(1)  # later
    clear()
    assert called and parameter.grad is not None


def test_profilers_see_zero_grad_and_step() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    assert "Optimizer.zero_grad#SGD.zero_grad" in spans(torch_steps.zero_grad_call(optimizer))
    step = torch_steps.step_call(optimizer)
    assert "Optimizer.step#SGD.step" in spans(lambda: step(lambda: None))


# ------------------------------------------------------------------------------------------------------------ step


@pytest.mark.parametrize("optimizer_class", [SGD, AdamW, Halving, LBFGS])
def test_step_changes_the_weights_as_torch_does(optimizer_class: Any) -> None:
    ours, theirs = parameters(), parameters()
    returned = []
    for given, wrap in ((ours, torch_steps.step_call), (theirs, lambda one: lambda closure: one.step(closure=closure))):
        optimizer = optimizer_class(given, lr=0.1)
        step = wrap(optimizer)

        def closure(given: list[nn.Parameter] = given) -> Tensor:
            assert torch.is_grad_enabled()
            for parameter in given:
                parameter.grad = None
            loss = torch.stack(tuple(given)).sin().sum()
            loss.backward()
            return loss

        returned.append([step(closure) for _ in range(3)])
        assert torch.is_grad_enabled()
        assert optimizer_class is not Halving or optimizer.stepped
    assert returned[0] == returned[1]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_hooks_of_the_optimizer_and_of_all_optimizers_are_called_when_they_come_later() -> None:
    optimizer, called = SGD(parameters(), lr=0.1), list[str]()
    step = torch_steps.step_call(optimizer)
    for name, register in (
        ("before", optimizer.register_step_pre_hook),
        ("after", optimizer.register_step_post_hook),
        ("before all", register_optimizer_step_pre_hook),
        ("after all", register_optimizer_step_post_hook),
    ):
        handle = register(lambda *_, name=name: called.append(name))
        step(lambda: None)
        assert called == [name]
        handle.remove()
        step(lambda: None)
        assert called == [name]
        called.clear()


def test_a_scheduler_sees_that_the_optimizer_has_stepped() -> None:
    optimizer = SGD(parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert vars(optimizer)["step"]._wrapped_by_lr_sched
    step = torch_steps.step_call(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(lambda: None)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("scheduled", [False, True])
def test_step_that_is_replaced_is_called(scheduled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def replacement(*args: Any, **kwargs: Any) -> None:
        called.append("replaced")

    optimizer = SGD(parameters(), lr=0.1)
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = torch_steps.step_call(optimizer)
    own = vars(optimizer).get("step")
    vars(optimizer)["step"] = replacement
    step(lambda: None)
    torch_steps.step_call(optimizer)(lambda: None)
    assert len(called) == 2
    if scheduled:
        vars(optimizer)["step"] = own
        return
    del vars(optimizer)["step"]
    monkeypatch.setattr(SGD, "step", replacement)
    step(lambda: None)
    torch_steps.step_call(optimizer)(lambda: None)
    assert len(called) == 4


def test_what_is_no_optimizer_of_torch_is_called_as_it_is() -> None:
    class Plain:
        def step(self, closure: Any) -> Any:
            return closure()

    plain: Any = Plain()
    assert not isinstance(plain, Optimizer)
    assert torch_steps.step_call(plain)(lambda: 5) == 5
