"""Save checkpoints during training."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from typing_extensions import override

from itwinai.checkpoints.checkpoint_io import PortableCheckpointIO
from itwinai.checkpoints.naming import PATTERN, PREEMPTED, is_preempted
from itwinai.compat import lightning_checkpoints, lightning_logging, lightning_loops
from itwinai.errors import CheckpointError, ConfigurationError
from itwinai.io.atomic import remove_parts
from itwinai.loops.deferred_save import when_hooks_are_done
from itwinai.warn import warn_user

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

OnError = Literal["stop", "continue"]

_EVERY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|s|sec|seconds?|min|minutes?|h|hours?)\s*")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class ModelCheckpoint(lightning_checkpoints.ModelCheckpoint):
    """Save checkpoints as Lightning's callback of this name does, in the background.

    Only the copy of the state to host memory blocks training. A thread on rank 0 (on every rank for sharded
    checkpoints) writes the copy, and each file appears whole or not at all. A save waits until the previous one is
    written.

    Args:
        dirpath: folder or URL; by default the logger's folder, or ``default_root_dir``, with ``checkpoints`` added.
        filename: pattern as in Lightning, like ``{epoch}-{val_loss:.2f}``.
        every: how often to save: ``"500steps"``, ``"10min"`` (also ``s`` and ``h``) or ``"2epochs"``. With a time, the
            end of the run is saved too, so that a later run resumes from there. By default at the end of every epoch.
        keep: without ``monitor``, the number of newest checkpoints to keep; 1 by default.
        background: write in the background. If off, training is blocked until the file is written.
        on_error: what to do when a checkpoint cannot be written, e.g. on a full disk: ``"stop"`` ends the run with an
            error, ``"continue"`` warns and continues training. Valid checkpoints are kept in either case.
        monitor: logged metric that selects the best checkpoints; without one the newest are kept.
        verbose: print when a checkpoint is saved.
        save_last: also keep the newest as ``last.ckpt``; ``"link"`` creates a link.
        save_top_k: number of best checkpoints to keep; ``-1`` keeps all, 0 saves none.
        save_on_exception: save when an exception ends the run.
        save_weights_only: leave out optimizers, loops and callbacks; such a file cannot be resumed from.
        mode: whether ``monitor`` is best at its ``"min"`` or ``"max"``.
        auto_insert_metric_name: write ``epoch=1`` rather than ``1`` into the name.
        every_n_train_steps: save every n steps, as Lightning does, which may leave out the end.
        train_time_interval: save after this time, which may leave out the end too.
        every_n_epochs: save every n epochs, which may leave out the end too.
        save_on_train_epoch_end: save at the end of the training epoch rather than of the validation.
        enable_version_counter: write ``-v1`` beside a file of the same name rather than over it.

    Raises:
        ConfigurationError: an argument is unknown, or contradicts another.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        every: str | None = None,
        keep: int | None = None,
        background: bool = True,
        on_error: OnError = "stop",
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ConfigurationError(f"on_error={on_error!r} is unknown; choose one of {', '.join(get_args(OnError))}.")
        triggers: dict[str, Any] = {
            "every_n_train_steps": every_n_train_steps,
            "train_time_interval": train_time_interval,
            "every_n_epochs": every_n_epochs,
        }
        if every is not None:
            triggers |= _triggers(every, triggers)
        if keep is not None:
            # Command lines give all arguments, also those at their defaults.
            if keep < 1 or monitor is not None or save_top_k != 1:
                raise ConfigurationError(
                    f"keep must be at least 1 (got {keep}), and cannot be combined with monitor or save_top_k: with a "
                    "monitor, save_top_k is the number of best checkpoints to keep."
                )
            save_top_k = -1
        super().__init__(
            dirpath,
            filename,
            monitor=monitor,
            verbose=verbose,
            save_last=save_last,
            save_top_k=save_top_k,
            save_on_exception=save_on_exception,
            save_weights_only=save_weights_only,
            mode=mode,
            auto_insert_metric_name=auto_insert_metric_name,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
            **triggers,
        )
        self.every = every
        self.keep = keep
        self.background = background
        self.on_error = on_error
        self._saved: list[str] = []
        self._next_look = 0
        self._began = 0, 0.0

    @property
    def is_idle_per_batch(self) -> bool:
        """Whether nothing is saved at the end of batches, so that the hook need not be called."""
        own = type(self).on_train_batch_end is ModelCheckpoint.on_train_batch_end
        return own and self.every_n_train_steps < 1 and self.train_time_interval is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and remove what writers that were killed have left in it."""
        super().setup(trainer, pl_module, stage)
        self._saves = stage == "fit"
        if trainer.is_global_zero and stage == "fit" and self.dirpath is not None:
            remove_parts(self.dirpath)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time."""
        super().on_train_start(trainer, pl_module)
        self._next_look = trainer.global_step
        self._began = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the interval is over, in steps or in seconds of rank 0's clock."""
        if self.train_time_interval is not None and lightning_loops.is_accumulating(trainer):
            return
        # Lightning exchanges the time in every step. Looking again at half of the time that is left is enough.
        if self.train_time_interval is None or trainer.global_step >= self._next_look:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if self.train_time_interval is not None:
                self._next_look = trainer.global_step + trainer.strategy.broadcast(self._steps_to_wait(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, if ``every`` is a time, and wait until everything is written."""
        super().on_train_end(trainer, pl_module)

        def end() -> None:
            if self.every is not None and self.train_time_interval is not None and trainer.global_step > self._began[0]:
                self.save_end(trainer)
            self.wait_for_writes(trainer)

        when_hooks_are_done(trainer, end)

    @override
    def format_checkpoint_name(
        self, metrics: dict[str, Any], filename: str | None = None, *args: Any, **kw: Any
    ) -> str:
        return super().format_checkpoint_name(metrics, filename or self.filename or PATTERN, *args, **kw)

    def on_preemption(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where a signal stops the run; all workers come here before the same batch."""
        if self.save_top_k == 0 and not self.save_last:
            return
        path = self.format_checkpoint_name({}, filename=PREEMPTED)
        self._save_checkpoint(trainer, path)
        self.wait_for_writes(trainer)

    def wait_for_writes(self, trainer: Trainer) -> None:
        """Wait until everything is written; all workers have to call it.

        Raises:
            CheckpointError: a checkpoint could not be written, and ``on_error`` is ``"stop"``.
        """
        plugin = trainer.strategy.checkpoint_io
        if isinstance(plugin, PortableCheckpointIO):
            plugin.wait()
        self._look_for_failures(trainer)

    def file_exists(self, filepath: Any, trainer: Trainer) -> bool:
        """Return whether a file exists, or is being written; the same on all workers."""
        plugin = trainer.strategy.checkpoint_io
        if isinstance(plugin, PortableCheckpointIO):
            pending = trainer.is_global_zero and plugin.is_pending(str(filepath))
            if trainer.strategy.reduce_boolean_decision(pending, all=False):
                return True
        return super().file_exists(filepath, trainer)

    def drop_failed(self, trainer: Trainer) -> None:
        """Forget what could not be written, so that it neither counts as kept nor takes the place of another."""
        self._look_for_failures(trainer)

    @contextmanager
    def saving(self, trainer: Trainer) -> Iterator[None]:
        """Save and remove in the background inside the context, and keep failures."""
        plugin = trainer.strategy.checkpoint_io
        if not isinstance(plugin, PortableCheckpointIO):
            yield
            return
        # Some loggers upload a checkpoint as soon as it is saved, and then it has to be there.
        at_once = any(lightning_logging.uploads_at_once(logger, self) for logger in trainer.loggers)
        with plugin.collecting_failures(self.background and not at_once):
            yield
        if at_once or not self.background:
            self._look_for_failures(trainer)

    def after_save(self, trainer: Trainer, filepath: str) -> None:
        """Remove the checkpoints that are not kept any more."""
        if self.keep is None or not self._is_counted(filepath):
            return
        self._saved = [path for path in self._saved if path != filepath] + [filepath]
        while len(self._saved) > self.keep:
            self._remove_checkpoint(trainer, self._saved.pop(0))

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and the list of kept checkpoints."""
        state = super().state_dict()
        if self.keep is None:
            return state
        # With the one that this state is about to be in.
        pending = [self.saving_to] if self.saving_to and self._is_counted(self.saving_to) else []
        return {**state, "saved": [path for path in self._saved if path not in pending] + pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore Lightning's state, and which checkpoints are kept."""
        with warnings.catch_warnings():
            if not getattr(self, "_saves", True):  # that another run saves elsewhere
                warnings.simplefilter("ignore")
            super().load_state_dict(state_dict)
        if self.dirpath == state_dict.get("dirpath"):
            self._saved = list(state_dict.get("saved", self._saved))

    def _is_counted(self, filepath: str) -> bool:
        """Return whether a checkpoint is one of those of which ``keep`` are kept: ``last.ckpt`` is a copy of one."""
        return not is_preempted(filepath) and filepath != self.last_model_path

    def _steps_to_wait(self, trainer: Trainer) -> int:
        """Return the number of steps until about half of the time that is left has passed."""
        assert self.train_time_interval is not None
        now = time.monotonic()
        steps, seconds = trainer.global_step - self._began[0], now - self._began[1]
        if steps < 1 or seconds <= 0:
            return 1
        left = self.train_time_interval.total_seconds() - (now - self.last_time_checked)
        return max(1, int(left / 2 / (seconds / steps)))

    def _look_for_failures(self, trainer: Trainer) -> None:
        plugin = trainer.strategy.checkpoint_io
        if not isinstance(plugin, PortableCheckpointIO):
            return
        failed = [(path, f"{type(error).__name__}: {error}") for path, error in plugin.pop_failures()]
        for path, reason in trainer.strategy.broadcast(failed):
            self.forget(path)
            self._saved = [saved for saved in self._saved if saved != path]
            message = f"The checkpoint {path} could not be written ({reason}). Those before it are still valid."
            if self.on_error == "stop":
                raise CheckpointError(
                    f"{message} Make room or choose another dirpath, and resume; with on_error='continue' training "
                    "continues anyway."
                )
            warn_user(f"{message} Training continues.")


def _triggers(every: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of Lightning's ModelCheckpoint for an interval."""
    other = [name for name in ("every_n_train_steps", "every_n_epochs", "train_time_interval") if given.get(name)]
    if other:
        raise ConfigurationError(f"every={every!r} and {other[0]} both say how often to save; choose one.")
    found = _EVERY.fullmatch(every) if isinstance(every, str) else None
    if found is None or float(found[1]) <= 0:
        raise ConfigurationError(f"every={every!r} is not an interval; write '500steps', '10min', '1h' or '2epochs'.")
    number, unit = float(found[1]), found[2]
    if unit.startswith(("step", "epoch")) and number != int(number):
        raise ConfigurationError(f"every={every!r} is not a whole number of {unit}.")
    if unit.startswith("step"):
        return {"every_n_train_steps": int(number)}
    if unit.startswith("epoch"):
        return {"every_n_epochs": int(number)}
    return {"train_time_interval": timedelta(seconds=number * _SECONDS[unit[0]])}
