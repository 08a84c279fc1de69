"""What a DeepSpeed engine has to be helped with: gradients, graphs, odd parameters, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.situations.situation import RIGHT, Situation
from tests.support.cases import make_trainer
from tests.support.zero_cases import (
    CASES,
    Adaptive,
    Base,
    Checkpointed,
    Complex,
    Differentiates,
    DropsLarge,
    Empty,
    Evaluates,
    Freezes,
    Late,
    Make,
    SavesItsHead,
    Thaws,
    WithExactBuffer,
    train,
    weights,
)


def as_in_one_process(make: Make, **options: Any) -> Callable[[str], None]:
    """Return what trains a module with two workers, and asserts weights, and what it has seen, of one process."""

    def run(strategy: str) -> None:
        alone, together = train(make, "auto", 1, **options), train(make, strategy, 2, **options)
        torch.testing.assert_close(weights(together), weights(alone), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(together.seen, alone.seen, rtol=1e-4, atol=1e-5)

    return run


def case(name: str) -> Callable[[str], None]:
    """Return what runs one of the cases of the tests of DeepSpeed."""
    make, options = CASES[name]
    return as_in_one_process(make, **options)


def half_precision(precision: str, dtype: torch.dtype, make: Make, strategy: str) -> None:
    """Train in half precision, and assert about the weights of full precision, in the type in which they shall be."""
    alone, together = train(make, "auto", 1), train(make, strategy, 2, precision=precision)
    assert {parameter.dtype for parameter in together.parameters()} == {dtype}
    torch.testing.assert_close(weights(together), weights(alone), rtol=0.05, atol=0.03)
    assert not torch.equal(weights(together), weights(make()))


def exact_buffer(strategy: str) -> None:
    as_in_one_process(WithExactBuffer)(strategy)
    module = train(WithExactBuffer, strategy, 2)
    assert torch.equal(module.exact, torch.tensor([1.0, 1e-12], dtype=torch.float64))


def own_state_dict(strategy: str) -> None:
    """Save on the way and go on, as in one process, where the body begins anew."""

    def resumed(strategy: str, workers: int) -> torch.Tensor:
        path = Path(f"{strategy}.ckpt")
        saving = partial(SavesOnTheWay, path)
        train(saving, strategy, workers)
        assert set(torch.load(path, weights_only=False)["state_dict"]) == {"head.weight", "head.bias"}
        module = SavesItsHead()
        make_trainer(strategy, workers).validate(module, [torch.ones(1, 3)], ckpt_path=str(path), verbose=False)
        return weights(module)

    torch.testing.assert_close(resumed(strategy, 2), resumed("auto", 1), rtol=1e-5, atol=2e-6)


class SavesOnTheWay(SavesItsHead):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self) -> None:
        self.trainer.save_checkpoint(self.path)


SECTION = "DeepSpeed does not support"


def on_zero(stage_2: str = RIGHT, stage_3: str | None = None) -> dict[str, str]:
    """Return outcomes for the stages 2 and 3, which are the same by default."""
    return {"deepspeed_stage_2": stage_2, "deepspeed_stage_3": stage_2 if stage_3 is None else stage_3}


def error(message: str) -> str:
    """Return the outcome that is an error with such a message."""
    return f"ConfigurationError {SECTION} {message}"


FROZEN = error("to {}freeze {} while it trains")

SITUATIONS = (
    Situation(
        "`bf16-mixed`: the weights come back in full precision",
        partial(half_precision, "bf16-mixed", torch.float32, Adaptive),
        on_zero(),
    ),
    Situation("`bf16-true`", partial(half_precision, "bf16-true", torch.bfloat16, Base), on_zero()),
    Situation("A buffer in float64", exact_buffer, on_zero()),
    Situation("Layers made in `configure_model`", as_in_one_process(partial(Late, "configure_model")), on_zero()),
    Situation("Layers made in `setup`", as_in_one_process(partial(Late, "setup")), on_zero()),
    Situation("An own `state_dict()`, without `keep_vars`", own_state_dict, on_zero()),
    Situation("Own `configure_gradient_clipping`", case("clips itself"), on_zero()),
    Situation("Clipping by value", case("clipped by value"), on_zero()),
    Situation("A callback that changes gradients in `on_before_optimizer_step`", case("halved"), on_zero()),
    Situation("`on_after_backward` that looks at gradients and drops some", as_in_one_process(DropsLarge), on_zero()),
    Situation("An own `backward`", case("own backward"), on_zero()),
    Situation("Gradients that are cleared without a step", case("steps every second"), on_zero()),
    Situation("Manual optimization: gradients discarded, summed up, clipped by hand", case("discards"), on_zero()),
    Situation("Manual optimization by `loss.backward()`, a step every second batch", case("steps by hand"), on_zero()),
    Situation("LBFGS", as_in_one_process(Evaluates), on_zero(error("the optimizer LBFGS"))),
    Situation("A layer unfrozen by hand", as_in_one_process(Thaws), on_zero(FROZEN.format("un", "body.weight"))),
    Situation("A layer frozen by hand", as_in_one_process(Freezes), on_zero(FROZEN.format("", "head.weight"))),
    Situation("A layer used in some steps only", case("uses some"), on_zero()),
    Situation(
        "A layer used in two reentrant checkpoints",
        as_in_one_process(Checkpointed),
        on_zero(error("computing a parameter's gradient twice in one backward pass")),
    ),
    Situation(
        "Second derivatives in training",
        as_in_one_process(Differentiates),
        on_zero(RIGHT, error("second derivatives in training")),
    ),
    Situation("Scalar parameters, `channels_last`, tied parameters", case("odd parameters"), on_zero()),
    Situation("An empty parameter", as_in_one_process(Empty), on_zero(RIGHT, error("the empty parameter none"))),
    Situation("A complex parameter", as_in_one_process(Complex), on_zero(error("the complex parameter phase"))),
    Situation("Sparse gradients", case("sparse"), on_zero(error("the sparse gradients of table"))),
    Situation("Layers that return dataclasses with slots, or numbers", case("returns objects"), on_zero()),
)
