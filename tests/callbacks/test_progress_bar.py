"""The progress bar is drawn by time, says what people want to know, and is silent where nobody looks."""

from __future__ import annotations

import io
import logging
import sys
import types
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from itwinai import ItwinaiTrainer
from itwinai.callbacks import TimedProgressBar, progress_bar
from tests.support.cases import Regression, loader, make_trainer


class Clock:
    """Time that passes only in training steps: one second each."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    return clock


class Timed(Regression):
    """Takes a second for a step, by its clock, and keeps what the bar shows."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = [clock]
        self.drawn: list[tuple[int, str]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.clock[0].now += 1
        return super().training_step(batch, batch_idx)


class Spy(TimedProgressBar):
    """Notes what is drawn."""

    def __init__(self, **options: Any) -> None:
        super().__init__(everywhere=True, **options)
        self.drawn: list[tuple[str, int, str]] = []

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        refresh = bar.refresh

        def noting(*args: Any, **kwargs: Any) -> Any:
            self.drawn.append((bar.desc, bar.n, bar.postfix or ""))
            return refresh(*args, **kwargs)

        bar.refresh = noting
        return bar


def fit(bar: ProgressBar, module: Regression, batches: Any, **options: Any) -> None:
    make_trainer("auto", 1, callbacks=[bar], enable_progress_bar=True, **options).fit(module, batches)


def test_rate_and_remaining_time(clock: Clock) -> None:
    """13 batches of 8 in each of two epochs, one second each."""
    bar = Spy(interval=0)
    fit(bar, Timed(clock), loader(8), max_epochs=2)
    shown = {(desc, n): postfix for desc, n, postfix in bar.drawn if postfix}
    assert shown["Epoch 0: ", 4].startswith("samples/s=8, left=00:22")
    assert shown["Epoch 1: ", 12].startswith("samples/s=8, left=00:01")


def test_drawn_by_time(clock: Clock) -> None:
    bar = Spy(interval=5)
    fit(bar, Timed(clock), loader(8), max_epochs=1)
    numbers = sorted({n for _, n, _ in bar.drawn})
    assert numbers == [0, 5, 10, 13]  # the end of an epoch is drawn in any case


def test_run_that_is_resumed_does_not_count_what_was_done_before(clock: Clock, tmp_path: Any) -> None:
    middle = ModelCheckpoint(tmp_path, every_n_train_steps=6)
    trainer = make_trainer("auto", 1, callbacks=[middle], enable_checkpointing=True, max_steps=7)
    trainer.fit(Timed(clock), loader(8))
    bar = Spy(interval=0)
    trainer = make_trainer("auto", 1, callbacks=[bar], enable_progress_bar=True, max_epochs=1)
    trainer.fit(Timed(clock), loader(8), ckpt_path=middle.best_model_path)
    assert {postfix for _, n, postfix in bar.drawn if n == 10 and postfix} == {"samples/s=8, left=00:03"}


def test_remaining_time_of_so_many_steps(clock: Clock) -> None:
    bar = Spy(interval=0)
    fit(bar, Timed(clock), loader(8), max_steps=3, accumulate_grad_batches=2, max_epochs=-1)
    assert [postfix for _, n, postfix in bar.drawn if n == 2 and postfix][0].startswith("samples/s=8, left=00:04")


def test_endless_data_and_batches_of_unknown_size(clock: Clock) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            while True:
                yield SimpleNamespace(x=torch.ones(4, 8))

    class Own(Timed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.clock[0].now += 1
            return self.net(batch.x).mean()

    bar = Spy(interval=0)
    stopping = make_trainer(
        "auto", 1, callbacks=[bar], enable_progress_bar=True, max_epochs=-1, max_time={"seconds": 1}
    )
    stopping.fit(Own(clock), DataLoader(Stream(), batch_size=None))
    assert max(n for _, n, _ in bar.drawn) > 1
    assert not any("samples/s" in postfix or "left" in postfix for _, _, postfix in bar.drawn)


def test_silent_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("auto", 1, enable_progress_bar=True, max_epochs=1)
    trainer.fit(Regression(), loader(8), loader(8))
    trainer.validate(Regression(), loader(8), verbose=False)
    trainer.predict(Regression(), loader(8))
    assert "\r" not in capfd.readouterr().out


class Noted(Timed):
    """Logs as users do, and once more in the last hook of an epoch."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", 0.5, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("late", float(self.current_epoch))


def lines_of(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch")]


def test_a_line_per_epoch_where_there_is_no_terminal(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    fit(TimedProgressBar(), Noted(clock), loader(8), max_epochs=3)
    first, second, third = lines_of(capfd)
    assert first.startswith("epoch 1/3  step 13  "), first
    assert second.startswith("epoch 2/3  step 26  ") and second.endswith("  8 samples/s  00:13 left"), second
    assert third.startswith("epoch 3/3  step 39  ") and third.endswith("  8 samples/s"), third
    assert "  loss 0.5  " in second and "  late 1  " in second and "loss_" not in second, second


def test_signs_of_life_in_long_epochs(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    class Slow(Noted):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.clock[0].now += 14  # 15 seconds for a step
            return super().training_step(batch, batch_idx)

    fit(TimedProgressBar(), Slow(clock), loader(8), max_epochs=1)
    starts = [line.split("  ")[:2] for line in lines_of(capfd)]
    assert starts == [["epoch 1/1", f"batch {n}/13"] for n in (4, 8, 12)] + [["epoch 1/1", "step 13"]]


def test_signs_of_life_in_long_evaluations(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    class Slow(Regression):
        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            clock.now += 15

    make_trainer("auto", 1, enable_progress_bar=True).test(Slow(), loader(8), verbose=False)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("test: ")]
    assert lines == ["test: batch 4", "test: batch 8", "test: batch 12"]


def test_thousands_of_short_epochs_do_not_fill_the_log(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    class Instant(Noted):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.clock[0].now -= 1
            return super().training_step(batch, batch_idx)

    fit(TimedProgressBar(), Instant(clock), loader(103), max_epochs=30)
    assert [line.split("  ")[0] for line in lines_of(capfd)] == [f"epoch {n}/30" for n in (*range(1, 11), 30)]


def test_lines_come_from_rank_0_alone(capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("ddp", 2, enable_progress_bar=True, max_epochs=2)
    trainer.fit(Regression(), loader(8), loader(8))
    lines = lines_of(capfd)
    assert [line.split("  ")[:2] for line in lines] == [["epoch 1/2", "step 7"], ["epoch 2/2", "step 14"]]
    assert all(f"{name} " in line for line in lines for name in ("train_loss", "val_loss"))
    assert all(" samples/s" in line for line in lines)


def test_workers_of_a_notebook_draw_a_bar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", types.ModuleType("kernelapp"))  # a fake kernel
    trainer = make_trainer("ddp", 2, enable_progress_bar=True, max_epochs=1, launcher="payload")
    trainer.fit(Regression(), loader(8))
    assert "Epoch 0: 100%" in capfd.readouterr().out


def test_warnings_begin_on_a_line_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *args: terminal.write(f"{message}\n"))
    logger = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(terminal)])
    with progress_bar.above_bars(), progress_bar.tqdm(total=10, desc="Epoch 0", file=terminal, mininterval=0) as bar:
        bar.update(3)
        warnings.showwarning("what is wrong", UserWarning, "file", 1)
        bar.update(1)
        logger.warning("what is said")
    before = terminal.getvalue().partition("what is said")[0]
    assert before.endswith("\r"), before
    line = next(line for line in terminal.getvalue().split("\n") if "what is wrong" in line)
    assert "Epoch" not in line.rpartition("\r")[2], line


def test_every_loop_ends_with_a_full_bar(capfd: pytest.CaptureFixture[str]) -> None:
    bar = TimedProgressBar(interval=3600, everywhere=True)
    trainer = make_trainer("auto", 1, callbacks=[bar], enable_progress_bar=True, max_epochs=1)
    trainer.fit(Regression(), loader(8), loader(8))
    assert "Epoch 0: 100%" in (out := capfd.readouterr().out)
    assert "Validation DataLoader 0: 100%" in out
    for entry_point, title in {"validate": "Validation", "test": "Testing", "predict": "Predicting"}.items():
        getattr(trainer, entry_point)(Regression(), loader(8))
        assert f"{title} DataLoader 0: 100%" in capfd.readouterr().out


def progress_bars(**options: Any) -> list[type]:
    trainer = ItwinaiTrainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **options)
    return [type(callback) for callback in trainer.callbacks if isinstance(callback, ProgressBar)]


def test_default_unless_there_is_another() -> None:
    callbacks: list[Any] = []
    assert progress_bars(callbacks=callbacks) == [TimedProgressBar]
    assert callbacks == []  # the user's list stays as it is
    assert progress_bars() == [TimedProgressBar]
    assert progress_bars(callbacks=[TQDMProgressBar()]) == [TQDMProgressBar]
    assert progress_bars(callbacks=TQDMProgressBar()) == [TQDMProgressBar]
    assert progress_bars(enable_progress_bar=False) == []
    assert progress_bars(barebones=True) == []


@pytest.mark.parametrize(
    ("number", "text"), [(0.5, "0.5"), (8.0, "8"), (999.4, "999"), (999.6, "1k"), (12345.0, "12.3k"), (2.5e6, "2.5M")]
)
def test_short_numbers(number: float, text: str) -> None:
    assert progress_bar._short(number) == text
