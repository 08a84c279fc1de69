"""What `itwinai.compat.lightning_signals` takes for granted about private names."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import lightning as L
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from itwinai.compat import lightning_loops, lightning_signals
from tests.compat.examples import LaunchedStrategy, RecordingLauncher, Tiny, Workers, looked, make_trainer, numbers


def test_other_signals_stop_the_run_too() -> None:
    def send(trainer: L.Trainer) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as caught:
        looked(send)
    assert caught.value.code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals_that_somebody_handles_are_left_to_him() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        found, trainer = looked(lambda trainer: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(received) == len(found) == 13 and trainer.global_step == 13


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """Let SIGTERM do no harm outside lightning's handler, and return where the signals that got through are noted."""
    signals: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    previous = signal.signal(signal.SIGTERM, note)
    yield signals
    assert signal.signal(signal.SIGTERM, previous) is note  # lightning has put it back


class Terminated(Tiny):
    """Gets SIGTERM in its second batch, twice."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def test_sigterm_ends_the_run_of_a_single_process_at_the_next_batch(terminated: list[int]) -> None:
    trainer, module = make_trainer(), Terminated()
    lightning_signals.replace_signal_connector(trainer)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, numbers(8))
    assert [index for _, index, *_ in module.trained] == [0, 1]
    assert trainer.received_sigterm
    assert terminated == 2 * [signal.SIGTERM]


def test_sigterm_is_left_to_others_where_somebody_listens(terminated: list[int], process_group: None) -> None:
    asked: list[bool] = []

    class Agreeing(lightning_loops.TrainingEpochLoop):
        def stop_if_agreed(self) -> None:
            # As when the workers have agreed on a later batch than that in which the signal came.
            lightning_signals.signal_connector(self.trainer).received_sigterm = self.batch_idx == 2

    trainer, module = make_trainer(strategy=Workers()), Terminated()
    lightning_loops.replace_training_epoch_loop(trainer, Agreeing)
    lightning_signals.replace_signal_connector(trainer)
    lightning_signals.signal_connector(trainer).on_sigterm = lambda: asked.append(trainer.received_sigterm)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, numbers(10))
    assert [index for _, index, *_ in module.trained] == [0, 1, 2, 3]
    assert asked == [False, False]
    assert terminated == 2 * [signal.SIGTERM]


class Running(RecordingLauncher):
    """Runs the function in this process; remembers the signals it was told to send on."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        self.killed.append(signum)


def test_sigterm_is_sent_on_to_what_the_launcher_has_started(terminated: list[int]) -> None:
    launcher = Running()
    trainer = make_trainer(strategy=LaunchedStrategy(launcher))
    lightning_signals.replace_signal_connector(trainer)
    with pytest.raises(SIGTERMException):
        trainer.fit(Terminated(), numbers(8))
    assert launcher.killed == [signal.SIGTERM]
