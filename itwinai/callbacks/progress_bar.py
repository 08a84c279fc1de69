"""How far a run is: a bar in terminals and notebooks, lines elsewhere."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import TqdmWarning, tqdm
from typing_extensions import override

from itwinai.data.batch_size import samples_in
from itwinai.launchers.environment import NOTEBOOK, in_notebook
from itwinai.loops.deferred_save import when_hooks_are_done

NEVER = math.inf

# A log gets a line per epoch, and in longer epochs one in this number of seconds.
SIGN_OF_LIFE = 60.0
# After the first epochs lines follow each other at this distance, in seconds: there may be thousands of short epochs.
FIRST_EPOCHS = 10
APART = 1.0
# Number of values that fit into a line.
VALUES = 5


class TimedProgressBar(TQDMProgressBar):
    """Show how far a run is, how many samples it takes per second, and how much longer it takes.

    Lightning's bar is drawn at every batch, which for small models costs more than the training step. This one is
    drawn ten times a second. Where the output is neither a terminal nor a notebook, a line per epoch takes its place,
    and one every minute in long epochs.

    Args:
        interval: seconds between two drawings.
        everywhere: draw the bar also where the output is not a terminal.
        leave: keep the bar of each epoch.
        process_position: number of lines to leave above the bar, for bars of someone else.
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
        self._predict_began = 0.0
        self._predicted = 0  # batches of this worker
        self._shown: dict[str, str] = {}
        # Where there are lines in place of the bar:
        self._writes_lines = False
        self._is_rank_0 = True
        self._samples = 0  # in a batch of all workers
        self._trained_until = 0.0
        self._lines = 0
        self._written = 0.0
        self._waiting = ""  # the line of an epoch that came too soon after another
        self._above = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_above": ExitStack()}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._above.close()
        self._writes_lines = not (self.everywhere or is_watched())
        self._is_rank_0 = trainer.is_global_zero
        if self._writes_lines:
            self.disable()
            self._lines = 0
        elif self.is_enabled:
            self._above.enter_context(above_bars())

    @override
    def teardown(self, *args: Any, **kwargs: Any) -> None:
        super().teardown(*args, **kwargs)
        self._forget_bars()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._forget_bars()

    @override
    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self._fit_began = time.monotonic()
        self._batches_before = trainer.fit_loop.total_batch_idx + 1
        self._sizes_known = True
        self.on_train_epoch_start(trainer)  # Lightning does not call it for an epoch that is resumed in the middle

    @override
    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._first_batch = None
        self._epoch_began = time.monotonic()
        self._restart()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._trained_until = time.monotonic()
        if self._first_batch is None:
            self._first_batch = batch_idx  # not 0 in an epoch that is resumed
            if self._writes_lines:
                self._samples = self._size_of(batch) * trainer.world_size
        if now < self._due:
            return
        if self._writes_lines:
            batches = f"batch {batch_idx + 1}/{trainer.num_training_batches}"
            self._write(self._line(trainer, trainer.current_epoch, trainer.callback_metrics, batches))
            return
        bar = self.train_progress_bar
        bar.n = batch_idx + 1
        rate = (bar.n - self._first_batch) / max(now - self._epoch_began, 1e-9)
        self._shown = {}
        if size := self._size_of(batch):
            self._shown["samples/s"] = _short(rate * size * trainer.world_size)
        if (left := self._seconds_left(trainer, now)) is not None:
            self._shown["left"] = tqdm.format_interval(left)
        bar.set_postfix(self.get_metrics(trainer, pl_module))
        self._due = time.monotonic() + self.interval  # counted from here: a slow terminal does not slow down the run

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the text behind the bar: the speed, the remaining time of the fit, and the logged values."""
        return {**self._shown, **super().get_metrics(trainer, pl_module)}

    def init_train_tqdm(self) -> Any:
        """Return the training bar, without the remaining time of the epoch: it shows that of the fit."""
        bar = super().init_train_tqdm()
        bar.bar_format = self.BAR_FORMAT.replace("<{remaining}", "")
        return bar

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writes_lines:
            when_hooks_are_done(trainer, partial(self._end_epoch, trainer, trainer.current_epoch))  # they may log
            return
        self.train_progress_bar.n = trainer.fit_loop.batch_idx + 1
        super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_train_end(self, *args: Any) -> None:
        super().on_train_end(*args)
        if self._waiting:
            self._write(self._waiting)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not (trainer.sanity_checking or self._writes_lines):
            # It does not move during validation, and would lag.
            self.train_progress_bar.n = trainer.fit_loop.batch_idx + 1
        super().on_validation_start(trainer, pl_module)
        self._restart()

    @override
    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._is_due(trainer, *args, **kwargs):
            super().on_validation_batch_end(trainer, *args, **kwargs)
            self._restart()

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._restart()

    @override
    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._is_due(trainer, *args, **kwargs):
            super().on_test_batch_end(trainer, *args, **kwargs)
            self._restart()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._predict_began, self._predicted = time.monotonic(), 0
        self._restart()

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._predicted += 1
        if time.monotonic() < self._due:
            return
        seconds = max(time.monotonic() - self._predict_began, 1e-9)
        rate = self._predicted * (self._size_of(batch) or 0) * trainer.world_size / seconds
        if self._writes_lines:
            batches = trainer.num_predict_batches[dataloader_idx]
            of = f"/{int(batches)}" if math.isfinite(batches) else ""
            self._write(f"predict: batch {batch_idx + 1}{of}" + (f"  {_short(rate)} samples/s" if rate else ""))
            return
        if rate:
            self.predict_progress_bar.set_postfix({"samples/s": _short(rate)}, refresh=False)
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._restart()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fill(self.val_progress_bar)
        super().on_validation_end(trainer, pl_module)
        self._restart()

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fill(self.test_progress_bar)
        super().on_test_end(trainer, pl_module)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _fill(self.predict_progress_bar)
        super().on_predict_end(trainer, pl_module)

    def _restart(self) -> None:
        if self._writes_lines:
            interval = SIGN_OF_LIFE if self._is_rank_0 else NEVER
        else:
            interval = self.interval if self.is_enabled else NEVER
        self._due = time.monotonic() + interval

    def _forget_bars(self) -> None:
        """Leave the terminal as it was; bars of notebooks cannot be sent back to the caller."""
        self._above.close()
        self._train_progress_bar = self._val_progress_bar = None
        self._test_progress_bar = self._predict_progress_bar = None

    def _is_due(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> bool:
        """Return whether the bar of an evaluation is to be drawn; where there are lines, write one in its place."""
        if time.monotonic() < self._due:
            return False
        if self._writes_lines:
            assert trainer.state.stage is not None
            self._write(f"{trainer.state.stage.value}: batch {batch_idx + 1}")
        return not self._writes_lines

    def _end_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Write the line of an epoch, or keep it if there was one a moment ago."""
        line = self._line(trainer, epoch, trainer.callback_metrics)
        if self._lines < FIRST_EPOCHS or time.monotonic() - self._written >= APART:
            self._write(line)
        else:
            self._waiting = line

    def _line(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any], batches: str = "") -> str:
        """Return what a line says: where the run is, what it has logged, how fast it is, and the time left."""
        end = f"/{trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
        parts = [f"epoch {epoch + 1}{end}", batches, f"step {trainer.global_step}"]
        parts += [f"{name} {value:.4g}" for name, value in _values(metrics).items()]
        seconds = self._trained_until - self._epoch_began
        if self._samples and seconds > 0 and self._first_batch is not None:
            trained = trainer.fit_loop.batch_idx + 1 - self._first_batch
            parts.append(f"{_short(trained * self._samples / seconds)} samples/s")
        if left := self._seconds_left(trainer, time.monotonic()):
            parts.append(f"{tqdm.format_interval(left)} left")
        return "  ".join(part for part in parts if part)

    def _write(self, line: str) -> None:
        if self._is_rank_0:
            print(line, flush=True)
        self._lines += 1
        self._written = time.monotonic()
        self._waiting = ""
        self._restart()

    def _size_of(self, batch: Any) -> int:
        """Return the number of samples in this worker's batch, or 0 where that cannot be told."""
        size = samples_in(batch) if self._sizes_known else None
        self._sizes_known = size is not None
        return size or 0

    def _seconds_left(self, trainer: Trainer, now: float) -> float | None:
        """Return how much longer the fit takes, validation included, or None where that cannot be told."""
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
    """Return whether lines that change can be seen: in a terminal, or in a notebook."""
    return sys.stdout.isatty() or in_notebook() or NOTEBOOK in os.environ


@contextmanager
def above_bars() -> Iterator[None]:
    """Let warnings and lines of the log begin on a line of their own, above the bar."""
    show = warnings.showwarning

    def show_above(*args: Any, **kwargs: Any) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            show(*args, **kwargs)

    with warnings.catch_warnings():
        # In a notebook without ipywidgets it warns that tqdm cannot draw a widget, which this bar does not do.
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.contrib.logging import logging_redirect_tqdm

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    warnings.showwarning = show_above
    try:
        with logging_redirect_tqdm([logging.root, *loggers]):
            yield
    finally:
        if warnings.showwarning is show_above:
            warnings.showwarning = show


def _values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the logged values for a line: of those that are logged on steps and epochs, that of the epoch."""
    values: dict[str, float] = {}
    for name, value in metrics.items():
        number = metrics.get(f"{name}_epoch", value)
        twice = any(name.endswith(end) and name.removesuffix(end) in metrics for end in ("_step", "_epoch"))
        if not twice and getattr(number, "numel", lambda: 1)() == 1:
            values[name] = float(number)
    return dict(list(values.items())[:VALUES])


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
