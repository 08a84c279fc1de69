"""Drawn fits run once under lightning's trainer and once under ours: all that can be seen of them is the same.

With ``ITWINAI_TESTS_EXAMPLES`` as many new examples are drawn per test; otherwise they are the same in every run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from lightning.pytorch import Trainer

from itwinai import ItwinaiTrainer
from tests.loops import scenarios as drawn
from tests.loops.freezing import difference
from tests.loops.runs import run
from tests.loops.scenarios import Scenario, scenarios

EXAMPLES = int(os.environ.get("ITWINAI_TESTS_EXAMPLES", "0"))


def some(examples: int) -> settings:
    """Return the settings of a test that draws about so many examples."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Let lightning say nothing, and torch use one thread, which is fastest for tiny tensors."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    threads = torch.get_num_threads()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def check(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Run a scenario under both trainers and compare."""
    # Where SIGTERM stops a run that saves checkpoints, ours ends the optimizer step first, and lightning does not.
    saves = any(extra.startswith("checkpoint") for extra in scenario.extras)
    does = {action.what for action in scenario.actions}
    accumulates = "accumulation" in scenario.extras or "accumulate_grad_batches" in dict(scenario.options)
    assume(not (saves and "terminate" in does and (accumulates or "accumulate" in does)))
    stock = run(scenario, Trainer, folder / "run")
    lean = run(scenario, ItwinaiTrainer, folder / "run")
    found = difference(stock, lean)
    if found is not None:
        pytest.fail(f"lightning against itwinai: {found}\n{scenario}", pytrace=False)
    return stock


@some(60)
@given(scenario=scenarios(drawn.HOOKS))
@example(scenario=Scenario(extras=("watching", "lambda")))  # whose steps are timed
def test_hooks(scenario: Scenario, folder: Path) -> None:
    check(scenario, folder)


@some(60)
@given(scenario=scenarios(drawn.LOGGING))
def test_logging(scenario: Scenario, folder: Path) -> None:
    check(scenario, folder)


@some(60)
@given(scenario=scenarios(drawn.OPTIMIZING))
@example(scenario=Scenario(extras=("watching",), options=(("accumulate_grad_batches", 2), ("gradient_clip_val", 0.1))))
def test_optimization(scenario: Scenario, folder: Path) -> None:
    check(scenario, folder)


@some(60)
@given(scenario=scenarios(drawn.ENDING))
def test_ends(scenario: Scenario, folder: Path) -> None:
    check(scenario, folder)


@some(60)
@given(scenario=scenarios(drawn.RESUMING))
@example(
    # Epoch 1 is begun by a checkpoint from the validation at the end of epoch 0.
    scenario=Scenario(
        extras=("checkpoint epoch",),
        options=(("max_epochs", -1), ("limit_train_batches", 2), ("val_check_interval", 1), ("max_steps", 3)),
        after="resume",
    )
)
def test_resuming(scenario: Scenario, folder: Path) -> None:
    check(scenario, folder)


@some(60)
@given(scenario=scenarios(drawn.FLAGS))
def test_flags(scenario: Scenario, folder: Path) -> None:
    check(scenario, folder)
