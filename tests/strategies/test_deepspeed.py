"""Every ZeRO stage trains what one process trains, whatever looks at gradients, and however these are summed up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from itwinai.errors import ConfigurationError
from itwinai.strategies import DeepSpeedStrategy, zero_checks, zero_gradients, zero_outputs
from tests.conftest import RunCommand, python
from tests.support.cases import make_trainer
from tests.support.zero_cases import (
    CASES,
    Base,
    ClipsItself,
    Empty,
    Encoded,
    Evaluates,
    Exact,
    Halves,
    OwnBackward,
    Sparse,
    train,
    weights,
)

RUNS = {
    "0": ("complex", "sparse", "thaws", "own backward", "drops large", "steps by hand", "checkpointed"),
    "1": ("clips itself", "drops large", "own backward", "steps by hand", "checkpointed", "halved"),
    "1o,2o,3o": ("accumulated", "discards", "uses some", "clips itself"),
    "2": ("clips itself", "steps every second", "hooks a parameter", "clipped by value"),
    "3s": ("clipped", "clips itself", "halved", "steps by hand", "odd parameters", "returns objects", "uses some"),
    "2f,3f": ("steps every second",),
}


@pytest.fixture(scope="module")
def trained(run_command: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Train all cases in one group, of torchrun; return the results of each rank."""
    out = tmp_path_factory.mktemp("zero") / "out"
    runs = [argument for stages, names in RUNS.items() for argument in (stages, ",".join(names))]
    script = ["-m", "tests.support.zero_cases", str(out), *runs]
    ended = run_command(python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script))
    assert ended.code == 0, ended.output
    return [torch.load(f"{out}-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(("stages", "names"), RUNS.items(), ids=str)
def test_cases_end_as_in_one_process(stages: str, names: tuple[str, ...], trained: list[dict[Any, Any]]) -> None:
    for name in names:
        make, options = CASES[name]
        alone = train(make, "auto", 1, **options)
        for stage, (rank, results) in itertools.product(stages.split(","), enumerate(trained)):
            result, where = results[stages, name, stage], f"{name}, stage {stage}, rank {rank}"
            torch.testing.assert_close(result["weights"], weights(alone), rtol=1e-5, atol=2e-6, msg=where)
            assert result["seen"] == pytest.approx(getattr(alone, "seen", []), rel=1e-4, abs=1e-5), where
            assert result["left"] == [], where


# ------------------------------------------------------------------------------------------ what is found at the start


def test_hooks_of_users_are_found_and_no_others() -> None:
    def reasons(module: Any, **options: Any) -> list[str]:
        trainer = make_trainer("auto", 1, **options)
        trainer.strategy.connect(module)
        module.trainer = trainer
        return zero_gradients.hooks_on_gradients(trainer)

    assert reasons(Base(), watch=True, gradient_clip_val=0.5) == []
    assert reasons(ClipsItself(), callbacks=[Halves()]) == [
        "ClipsItself.configure_gradient_clipping",
        "Halves.on_before_optimizer_step",
    ]
    assert reasons(OwnBackward()) == []  # it sees no gradients
    manual = Base()
    manual.automatic_optimization = False
    assert reasons(manual) == ["manual optimization"]
    assert reasons(Base(), gradient_clip_val=0.1, gradient_clip_algorithm="value") == [
        "gradient_clip_algorithm='value'"
    ]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("module", "message"), [(Exact, "the parameter scale of torch.float64"), (Sparse, "of table")])
def test_parameters_that_zero_cannot_flatten_are_named(stage: int, module: type[nn.Module], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"DeepSpeed does not support .*{message} in stage {stage}"):
        zero_checks.check_parameters(module(), stage, torch.float32)
    zero_checks.check_parameters(module(), 0, torch.float32)


def test_types_may_differ_where_the_engine_makes_them_one() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16))
    with pytest.raises(ConfigurationError, match="the parameter 1.weight of torch.bfloat16"):
        zero_checks.check_parameters(module, 2, torch.float32)
    zero_checks.check_parameters(module, 2, torch.bfloat16)
    zero_checks.check_parameters(Empty(), 2, torch.float32)


def test_optimizers_that_need_a_closure_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not support the optimizer LBFGS.*'ddp'"):
        zero_checks.check_optimizer(Evaluates().configure_optimizers())
    zero_checks.check_optimizer(Base().configure_optimizers())


def test_whole_gradients_in_half_precision_with_scaling_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = DeepSpeedStrategy(stage=2, config={"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    strategy.connect(Base())
    strategy.precision_plugin = zero_gradients.EnginePrecision("16-mixed", lambda: None)
    with pytest.raises(ConfigurationError, match=r"hooks on gradients \(Net.on_after_backward\) in stage 2"):
        strategy._keep_gradients_whole(None, [], ["Net.on_after_backward"])


# ------------------------------------------------------------------------------------------------- outputs of layers


class Slotted:
    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Plain:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.name = tensor, "plain"


@pytest.mark.parametrize("output", [Slotted(torch.ones(1)), Plain(torch.ones(1)), Encoded(torch.ones(1), 2)])
def test_tensors_in_objects_go_through_the_hook(output: Any) -> None:
    hook = zero_outputs.tolerant(lambda module, inputs, tensors: [tensor + 1 for tensor in tensors])
    returned = hook(None, (), output)
    assert type(returned) is type(output) and returned is not output
    name = "hidden" if isinstance(output, Encoded) else "tensor"
    assert getattr(returned, name).item() == 2
    assert getattr(output, name).item() == 1


@pytest.mark.parametrize("output", [3, "text", frozenset({1}), len])
def test_objects_without_tensors_stay(output: Any) -> None:
    seen: list[Any] = []
    hook = zero_outputs.tolerant(lambda module, inputs, tensors: seen.append(tensors))
    assert hook(None, (), output) is None
    assert seen == [[]]


@pytest.mark.parametrize("output", [torch.ones(1), (torch.ones(1),), {"a": torch.ones(1)}, None])
def test_what_deepspeed_knows_it_gets(output: Any) -> None:
    hook = zero_outputs.tolerant(lambda module, inputs, found: found)
    assert hook(None, (), output) is output
