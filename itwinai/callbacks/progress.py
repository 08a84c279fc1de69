"""A progress bar that is drawn by time, so that it costs a fast step next to nothing."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from itwinai.data.batches import samples_in

NEVER = math.inf


class TimedProgressBar(TQDMProgressBar):
    """Show how far a run is, how many samples it takes per second, and how long it will go on.

    lightning's bar is drawn anew at every batch, which for small models costs more than the training step. This one is
    drawn ten times a second. Where nobody looks, because the output is no terminal, it stays silent.

    Args:
        interval: seconds between two drawings.
        everywhere: draw also where the output is no terminal.
        leave: keep the bar of each epoch.
        process_position: number of lines to leave above the bar, for bars of somebody else.
    """

    def __init__(
        self, interval: float = 0.1, everywhere: bool = False, leave: bool = False, process_position: int = 0
    ) -> None:
        super().__init__(refresh_rate=1, process_position=process_position, leave=leave)
        self.interval = interval
        self.everywhere = everywhere
        self._due = NEVER
        self._epoch_began = 0.0
        self._first_batch: int | None = None
        self._fit_began = 0.0
        self._batches_before = 0
        self._sizes_known = True
        self._shown: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not (self.everywhere or is_watched()):
            self.disable()

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self._fit_began = time.monotonic()
        self._batches_before = trainer.fit_loop.total_batch_idx + 1
        self._sizes_known = True
        self.on_train_epoch_start(trainer)  # lightning does not call it for an epoch that is resumed in its midst

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._first_batch = None
        self._epoch_began = time.monotonic()
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._first_batch is None:
            self._first_batch = batch_idx  # not 0 in an epoch that is resumed
        now = time.monotonic()
        if now < self._due:
            return
        bar = self.train_progress_bar
        bar.n = batch_idx + 1
        rate = (bar.n - self._first_batch) / max(now - self._epoch_began, 1e-9)
        self._shown = {}
        if size := self._size_of(batch):
            self._shown["samples/s"] = _short(rate * size * trainer.world_size)
        if (left := self._seconds_left(trainer, now)) is not None:
            self._shown["left"] = bar.format_interval(left)
        bar.set_postfix(self.get_metrics(trainer, pl_module))
        self._due = time.monotonic() + self.interval  # counted from here: a slow terminal shall not slow down the run

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands behind the bar: the speed, the time until the fit has ended, and the logged values."""
        return {**self._shown, **super().get_metrics(trainer, pl_module)}

    def init_train_tqdm(self) -> Any:
        """Return the bar of training, without the time until the epoch has ended: that of the fit is shown."""
        bar = super().init_train_tqdm()
        bar.bar_format = self.BAR_FORMAT.replace("<{remaining}", "")
        return bar

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_progress_bar.n = trainer.fit_loop.batch_idx + 1
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.train_progress_bar.n = trainer.fit_loop.batch_idx + 1  # it stands still meanwhile, and shall not lag
        super().on_validation_start(trainer, pl_module)
        self._restart()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if time.monotonic() >= self._due:
            super().on_validation_batch_end(*args, **kwargs)
            self._restart()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._restart()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if time.monotonic() >= self._due:
            super().on_test_batch_end(*args, **kwargs)
            self._restart()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._restart()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if time.monotonic() >= self._due:
            super().on_predict_batch_end(*args, **kwargs)
            self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fill(self.val_progress_bar)
        super().on_validation_end(trainer, pl_module)
        self._restart()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fill(self.test_progress_bar)
        super().on_test_end(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fill(self.predict_progress_bar)
        super().on_predict_end(trainer, pl_module)

    def _restart(self) -> None:
        self._due = time.monotonic() + self.interval if self.is_enabled else NEVER

    def _size_of(self, batch: Any) -> int:
        """Return the number of samples in this worker's batch, or 0 where that cannot be told."""
        size = samples_in(batch) if self._sizes_known else None
        self._sizes_known = size is not None
        return size or 0

    def _seconds_left(self, trainer: Trainer, now: float) -> float | None:
        """Return how long the fit will go on, validation included, or None where that cannot be told."""
        done = trainer.fit_loop.total_batch_idx + 1
        ends = []
        if trainer.max_epochs not in (None, -1):
            ends.append(trainer.max_epochs * trainer.num_training_batches)
        if trainer.max_steps != -1:
            ends.append(done + (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        end = min(ends, default=math.inf)
        if math.isinf(end) or done <= self._batches_before:
            return None
        return max(end - done, 0) * (now - self._fit_began) / (done - self._batches_before)


def is_watched() -> bool:
    """Tell whether somebody sees lines that change: in a terminal, or in a notebook."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def _fill(bar: Any) -> None:
    if not bar.disable and bar.total is not None:
        bar.n = bar.total
        bar.refresh()


def _short(number: float) -> str:
    """Return a number with three digits and the letter of its power of 1000."""
    for unit in ("", "k", "M", "G"):  # noqa: B007 - the one at which it ends is used below
        if number < 999.5:
            break
        number /= 1000
    return f"{number:.3g}{unit}"
