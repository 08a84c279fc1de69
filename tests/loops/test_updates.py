"""The compiled step's updates are those of torch's optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from itwinai.loops.compiled.updates import UPDATES, update_of

VARIANTS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    (torch.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.AdamW, {"maximize": True, "eps": 1e-3}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.3, "maximize": True, "eps": 1e-3}),
]


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_update(kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=generator, dtype=dtype)
    theirs, ours = (torch.nn.Parameter(start.clone()) for _ in range(2))
    reference, optimizer = (kind([parameter], lr=0.05, **options) for parameter in (theirs, ours))
    update = update_of(optimizer)
    assert update is not None
    group = optimizer.param_groups[0]
    for number in range(20):
        gradient = torch.randn(5, 3, generator=generator, dtype=dtype)
        for one in (reference, optimizer):  # what schedulers do
            one.param_groups[0]["lr"] = 0.05 / (number + 1)
        theirs.grad = gradient.clone()
        reference.step()
        state = optimizer.state[ours]
        if not state:
            state.update(update.begin(group, ours.detach()))
        given = {name: torch.tensor(read(group), dtype=torch.float64) for name, read in update.numbers.items()}
        with torch.no_grad():
            update.apply(ours, gradient, state, given, group)
    precision: dict[str, float] = {"rtol": 1e-12, "atol": 0} if dtype is torch.float64 else {"rtol": 3e-6, "atol": 1e-7}
    torch.testing.assert_close(ours, theirs, **precision)
    expected: dict[str, Tensor] = reference.state[theirs]
    assert {name: one.dtype for name, one in state.items()} == {name: one.dtype for name, one in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, **precision)


def test_derived_optimizers_are_not_taken_for_torchs() -> None:
    derived = type("Derived", (torch.optim.SGD,), {})
    assert update_of(derived([torch.nn.Parameter(torch.ones(1))])) is None
    assert update_of(torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))])) is None
    assert len(UPDATES) == 5
