"""What torch does around a backward pass and around an optimizer's ``step`` and ``zero_grad``.

Each of them opens a span for torch's profiler and checks its arguments. Together that takes about 25 us of each step,
a tenth of the step of a small network. Without a profiler, nothing reads the spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from itwinai.compat.torch import is_profiling

Closure = Callable[[], Any]

# As they are defined. Where someone has put something else in their place, that has to be called.
_BACKWARD = Tensor.backward, torch.autograd.backward
_ZERO_GRAD = Optimizer.zero_grad
_SPAN_CODE = Optimizer.profile_hook_step(lambda: None).__code__


def backward_call() -> Callable[[Tensor], None]:
    """Return a function that does what ``loss.backward()`` does."""
    return _run_backward if (Tensor.backward, torch.autograd.backward) == _BACKWARD else _call_backward


def _call_backward(loss: Tensor) -> None:
    loss.backward()


def _run_backward(loss: Tensor) -> None:
    # What is not a plain scalar gets torch's checks and their errors; a loss that is a leaf keeps its gradient.
    if (
        type(loss) is not Tensor
        or loss.grad_fn is None
        or loss.dim()
        or not loss.is_floating_point()
        or torch._C._are_functorch_transforms_active()
    ):
        loss.backward()
        return
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def zero_grad_call(optimizer: Optimizer) -> Callable[[], None]:
    """Return a function that does what ``optimizer.zero_grad()`` does."""
    if type(optimizer).zero_grad is not _ZERO_GRAD:
        return lambda: optimizer.zero_grad()
    scope = vars(optimizer)

    def clear() -> None:
        if is_profiling() or "zero_grad" in scope:
            optimizer.zero_grad()
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    return clear


def step_call(optimizer: Optimizer) -> Callable[[Closure], Any]:
    """Return a function that does what ``optimizer.step(closure)`` does, also when the optimizer changes later."""
    optimizer_class: Any = type(optimizer)
    spanned = optimizer_class.step
    own = vars(optimizer).get("step")
    counted = getattr(own, "_wrapped_by_lr_sched", False) and getattr(own, "__wrapped__", None) is spanned
    if getattr(spanned, "__code__", None) is not _SPAN_CODE or not (own is None or counted):
        return lambda closure: optimizer.step(closure=closure)
    step = spanned.__wrapped__
    scope = vars(optimizer)

    def call(closure: Closure) -> Any:
        if (
            is_profiling()
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or scope.get("step") is not own
            or optimizer_class.step is not spanned
        ):
            return optimizer.step(closure=closure)
        if counted:
            scope["_opt_called"] = True  # by which a scheduler sees that it does not step first
        return step(optimizer, closure=closure)

    return call
