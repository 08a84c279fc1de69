"""The parts of a training step get the time that is spent in them."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from itwinai.profiling.step_timer import Phase, StepClock, StepSplit, split_of
from tests.support.cases import make_trainer

SPENT = {  # milliseconds, each part another number
    Phase.DATA: 3,
    Phase.TRANSFER: 5,
    Phase.FORWARD: 7,
    Phase.BACKWARD: 9,
    Phase.OPTIMIZER: 11,
    Phase.CALLBACKS: 13,
    Phase.LOGGING: 15,
}
STEPS = 6


def burn(phase: Phase) -> None:
    until = time.perf_counter() + SPENT[phase] / 1e3
    while time.perf_counter() < until:
        pass


class SlowData(Dataset):
    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Tensor:
        burn(Phase.DATA)
        return torch.ones(4)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        burn(Phase.BACKWARD)
        return gradients[0]


class SlowOptimizer(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        returned = super().step(closure)
        burn(Phase.OPTIMIZER)
        return returned


class Slow(LightningModule):
    def __init__(self, automatic: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.net = nn.Linear(4, 1)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        burn(Phase.TRANSFER)
        return batch

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        burn(Phase.FORWARD)
        loss = SlowBackward.apply(self.net(batch).mean())
        self.log("loss", loss)
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SlowOptimizer(self.parameters(), lr=0.1)


class Watching(Callback):
    """Takes part of the time of hooks in each of them."""

    step_clock: StepClock | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        burn(Phase.CALLBACKS)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        time.sleep(0.01)  # is time between steps

    def on_after_backward(self, *args: Any) -> None:
        self.on_train_batch_start()

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.on_train_batch_start()

    def on_train_batch_end(self, *args: Any) -> None:
        self.on_train_batch_start()


class SlowLogger(Logger):
    @property
    def name(self) -> str:
        return "slow"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        burn(Phase.LOGGING)


def split(module: LightningModule, **options: Any) -> StepSplit:
    watching = Watching()
    options = {"max_epochs": 1, "logger": SlowLogger(), "log_every_n_steps": 1, "callbacks": [watching], **options}
    make_trainer("auto", 1, **options).fit(module, DataLoader(SlowData(), batch_size=1))
    assert watching.step_clock is not None
    found = split_of(watching.step_clock)
    assert found is not None and found.steps == STEPS
    return found


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 1.0}], ids=str)
def test_each_part_has_its_own_time(options: dict[str, Any]) -> None:
    found = split(Slow(), **options)
    expected = {**SPENT, Phase.CALLBACKS: 4 * SPENT[Phase.CALLBACKS]}
    assert found.phases.keys() == expected.keys()
    for phase, milliseconds in expected.items():
        assert found.phases[phase] * 1e3 >= 0.999 * milliseconds, phase
    assert sum(found.phases.values()) + found.rest == pytest.approx(found.step, rel=1e-6)


def test_what_is_optimized_by_hand_is_one_part() -> None:
    found = split(Slow(automatic=False))
    by_hand = SPENT[Phase.FORWARD] + SPENT[Phase.BACKWARD] + SPENT[Phase.OPTIMIZER]
    assert found.phases[Phase.MANUAL] * 1e3 >= 0.999 * by_hand
    assert not found.phases.keys() & {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER}


def test_without_a_watcher_there_is_no_clock() -> None:
    trainer = make_trainer("auto", 1, max_epochs=1)
    clocks = []

    class Looking(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            clocks.append(trainer.fit_loop.epoch_loop.clock)

    trainer.callbacks.append(Looking())
    trainer.fit(Slow(), DataLoader(SlowData(), batch_size=1))
    assert clocks == [None] * STEPS
