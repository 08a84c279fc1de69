"""What torch's optimizers do to one parameter, as plain operations that a graph can hold.

Each follows the formulas of torch's own ``_single_tensor_*``, in their order; `tests/loops/test_updates.py` compares
them. Hyperparameters are numbers without dimensions in double precision, as Python's are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from itwinai.compat import torch_compile

Group = Mapping[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """How one optimizer changes a parameter.

    Attributes:
        numbers: hyperparameters that may change from step to step, with the way to read them from a group.
        flags: hyperparameters that are part of the graph.
        begin: returns the state of a parameter that has none yet.
        apply: changes a parameter and its state in place, given its gradient and the numbers.
    """

    numbers: dict[str, Callable[[Group], float]]
    flags: dict[str, Callable[[Group], Any]]
    begin: Callable[[Group, Tensor], State]
    apply: Callable[[Tensor, Tensor, State, dict[str, Tensor], Group], None]


def update_of(optimizer: Optimizer) -> Update | None:
    """Return how an optimizer updates; None if it is not one of those here, or a class derived of one."""
    return UPDATES.get(type(optimizer))


def _number(name: str) -> Callable[[Group], float]:
    return lambda group: group[name]


def _sgd_state(group: Group, parameter: Tensor) -> State:
    # torch begins with the first gradient, undamped: zero has the same effect where nothing is damped.
    return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}


def _sgd(parameter: Tensor, gradient: Tensor, state: State, given: dict[str, Tensor], group: Group) -> None:
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        gradient = gradient + parameter * _as(given["weight_decay"], parameter)
    if group["momentum"]:
        momentum, buffer = _as(given["momentum"], parameter), state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        gradient = gradient + buffer * momentum if group["nesterov"] else buffer
    parameter.add_(gradient * _as(-given["lr"], parameter))


def _adam_state(group: Group, parameter: Tensor) -> State:
    names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group["amsgrad"]
    return {"step": _no_steps(), **{name: torch.zeros_like(parameter) for name in names}}


def _adam(parameter: Tensor, gradient: Tensor, state: State, given: dict[str, Tensor], group: Group) -> None:
    step = state["step"]
    step.add_(1)
    if group["maximize"]:
        gradient = -gradient
    lr, beta1, beta2 = given["lr"], given["beta1"], given["beta2"]
    if group["weight_decay"]:
        if group["decoupled_weight_decay"]:
            parameter.mul_(_as(1 - lr * given["weight_decay"], parameter))
        else:
            gradient = gradient + parameter * _as(given["weight_decay"], parameter)
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.add_((gradient - mean) * _as(1 - beta1, parameter))
    square.mul_(_as(beta2, parameter)).add_(gradient * gradient * _as(1 - beta2, parameter))
    steps = step.double()
    step_size = lr / (1 - beta1**steps)
    root = (1 - beta2**steps).sqrt()
    if group["amsgrad"]:
        torch.maximum(state["max_exp_avg_sq"], square, out=state["max_exp_avg_sq"])
        square = state["max_exp_avg_sq"]
    scale = square.sqrt() / _as(root, parameter) + _as(given["eps"], parameter)
    parameter.add_(mean * _as(-step_size, parameter) / scale)


def _rmsprop_state(group: Group, parameter: Tensor) -> State:
    names = ["square_avg"] + ["momentum_buffer"] * (group["momentum"] > 0) + ["grad_avg"] * group["centered"]
    return {"step": _no_steps(), **{name: torch.zeros_like(parameter) for name in names}}


def _rmsprop(parameter: Tensor, gradient: Tensor, state: State, given: dict[str, Tensor], group: Group) -> None:
    state["step"].add_(1)
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        gradient = gradient + parameter * _as(given["weight_decay"], parameter)
    rest, square = _as(1 - given["alpha"], parameter), state["square_avg"]
    square.mul_(_as(given["alpha"], parameter)).add_(gradient * gradient * rest)
    if group["centered"]:
        mean = state["grad_avg"]
        mean.add_((gradient - mean) * rest)
        square = square - mean * mean
    scale = square.sqrt() + _as(given["eps"], parameter)
    if group["momentum"] > 0:
        buffer = state["momentum_buffer"]
        buffer.mul_(_as(given["momentum"], parameter)).add_(gradient / scale)
        parameter.add_(buffer * _as(-given["lr"], parameter))
    else:
        parameter.add_(gradient * _as(-given["lr"], parameter) / scale)


def _adagrad_state(group: Group, parameter: Tensor) -> State:
    return {"step": _no_steps(), "sum": torch.full_like(parameter, group["initial_accumulator_value"])}


def _adagrad(parameter: Tensor, gradient: Tensor, state: State, given: dict[str, Tensor], group: Group) -> None:
    step, total = state["step"], state["sum"]
    step.add_(1)
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        gradient = gradient + parameter * _as(given["weight_decay"], parameter)
    lr = given["lr"] / (1 + (step.double() - 1) * given["lr_decay"])
    total.add_(gradient * gradient)
    parameter.add_(gradient * _as(-lr, parameter) / (total.sqrt() + _as(given["eps"], parameter)))


def _as(number: Tensor, parameter: Tensor) -> Tensor:
    """Round a hyperparameter as torch does before it meets the elements of a tensor."""
    kind = parameter.dtype
    return number.to(torch.float32 if kind in (torch.float16, torch.bfloat16) else kind)


def _no_steps() -> Tensor:
    return torch.zeros((), dtype=torch_compile.step_dtype())


_LR = {"lr": _number("lr"), "weight_decay": _number("weight_decay")}
_FLAGS: dict[str, Callable[[Group], Any]] = {
    "maximize": _number("maximize"),
    "weight_decay": lambda group: bool(group["weight_decay"]),
}
_ADAM = Update(
    {
        **_LR,
        "beta1": lambda group: group["betas"][0],
        "beta2": lambda group: group["betas"][1],
        "eps": _number("eps"),
    },
    {**_FLAGS, "amsgrad": _number("amsgrad"), "decoupled_weight_decay": _number("decoupled_weight_decay")},
    _adam_state,
    _adam,
)
UPDATES: dict[type[Optimizer], Update] = {
    SGD: Update(
        {**_LR, "momentum": _number("momentum")},
        {**_FLAGS, "nesterov": _number("nesterov"), "momentum": lambda group: bool(group["momentum"])},
        _sgd_state,
        _sgd,
    ),
    Adam: _ADAM,
    AdamW: _ADAM,
    RMSprop: Update(
        {**_LR, "alpha": _number("alpha"), "eps": _number("eps"), "momentum": _number("momentum")},
        {**_FLAGS, "centered": _number("centered"), "momentum": lambda group: group["momentum"] > 0},
        _rmsprop_state,
        _rmsprop,
    ),
    Adagrad: Update({**_LR, "lr_decay": _number("lr_decay"), "eps": _number("eps")}, _FLAGS, _adagrad_state, _adagrad),
}
