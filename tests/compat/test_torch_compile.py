"""What `itwinai.compat.torch_compile` takes for granted about private names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from itwinai.compat import torch_compile


def test_graph_that_changes_its_inputs_and_draws_as_without_a_compiler() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    rate, x = torch.tensor(0.5, dtype=torch.float64), torch.ones(4, 3)
    fakes = torch_compile.FakeTensors()
    assert fakes.of(weight) is fakes.of(weight)
    assert isinstance(fakes.of(weight), nn.Parameter)
    made: list[Tensor] = []

    def step() -> list[Tensor]:
        with torch_compile.outside_of_trace():
            made.append(torch.zeros(2, 3))
        loss = nn.functional.dropout(fakes.of(x) @ fakes.of(weight).t(), 0.5).sum()
        (gradient,) = torch.autograd.grad(loss, [fakes.of(weight)])
        with torch.no_grad():
            fakes.of(made[0]).add_(gradient)
            fakes.of(weight).sub_(gradient * fakes.of(rate).float())
        return [loss.detach()]

    graph, inputs = torch_compile.trace(step, fakes)
    assert type(made[0]) is Tensor
    assert {id(tensor) for tensor in inputs} == {id(tensor) for tensor in (weight, x, rate, made[0])}
    compiled = torch_compile.compile_graph(graph, inputs, fakes)
    reference = weight.detach().clone().requires_grad_()
    torch.manual_seed(0)
    expected = nn.functional.dropout(x @ reference.t(), 0.5).sum()
    expected.backward()
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    with torch.no_grad():
        (loss,) = compiled(list(inputs))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loss == expected
    assert reference.grad is not None
    assert torch.equal(made[0], reference.grad)
    assert torch.equal(weight, reference.detach() - 0.5 * reference.grad)


def test_errors_that_ask_for_values() -> None:
    fakes = torch_compile.FakeTensors()
    x = fakes.of(torch.ones(2))
    for ask in (lambda: x.sum().item(), lambda: bool(x.sum() > 0), lambda: x.nonzero() + 1):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            torch_compile.trace(lambda ask=ask: [torch.ones(()) * ask()], fakes)  # type: ignore[misc]
        assert torch_compile.needs_values(raised.value)
    assert not torch_compile.needs_values(ValueError())


def test_optimizers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert not torch_compile.has_own_step(optimizer)
    handle = optimizer.register_step_pre_hook(lambda *_: None)
    assert torch_compile.has_own_step(optimizer)
    handle.remove()
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign,assignment]
    assert torch_compile.has_own_step(optimizer)
    adam = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    adam.param_groups[0]["params"][0].grad = torch.ones(1)
    adam.step()
    assert adam.state[adam.param_groups[0]["params"][0]]["step"].dtype is torch_compile.step_dtype()


def test_schedulers_that_know_of_steps(recwarn: pytest.WarningsRecorder) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    torch_compile.note_step(optimizer)
    scheduler.step()
    assert not [one for one in recwarn if "lr_scheduler.step()" in str(one.message)]


def test_batches_and_hooks() -> None:
    leaves, structure = torch_compile.flatten({"x": [1, (2, None)]})
    assert torch_compile.unflatten(leaves, structure) == {"x": [1, (2, None)]}
    assert structure == torch_compile.flatten({"x": [3, (4, None)]})[1]
    layer = nn.Linear(1, 1)
    assert not torch_compile.own_hooks(layer)
    assert not torch_compile.own_hooks(nn.utils.spectral_norm(nn.Linear(2, 2)))
    layer.register_forward_hook(lambda *_: None)
    assert torch_compile.own_hooks(layer)
    wrapped = torch.compile(lambda x: x + 1, backend=lambda graph, inputs: pytest.fail("compiled"))
    with torch_compile.without_other_compilers():
        assert wrapped(torch.ones(())) == 2
