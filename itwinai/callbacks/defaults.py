"""The callbacks that a trainer has unless there are others of their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, LearningRateFinder, ModelSummary, ProgressBar
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint

from itwinai.callbacks.model_checkpoint import ModelCheckpoint
from itwinai.callbacks.model_summary import ShortModelSummary
from itwinai.callbacks.progress_bar import TimedProgressBar
from itwinai.compat import lightning_trainer
from itwinai.errors import ConfigurationError
from itwinai.interfaces import SummaryReporter

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def with_defaults(
    given: Callback | Iterable[Callback] | None,
    watch: bool,
    loggers: Any,
    *,
    progress: bool,
    summary: bool,
    checkpoints: bool,
) -> list[Callback]:
    """Return the user's callbacks, and those that come with an `ItwinaiTrainer`.

    Args:
        given: the user's.
        watch: add those that watch a run.
        loggers: as Lightning accepts them; False for no logger.
        progress: add a progress bar.
        summary: add a summary of the model.
        checkpoints: add one that saves checkpoints.
    """
    callbacks = [given] if isinstance(given, Callback) else list(given or ())
    makers: list[tuple[type, Callable[[], Callback]]] = []
    if watch:
        makers += _watching() if loggers is False else _logging() + _watching()
    if progress:
        makers.append((ProgressBar, TimedProgressBar))
    if summary:
        makers.append((ModelSummary, ShortModelSummary))
    if checkpoints:
        makers.append((Checkpoint, ModelCheckpoint))
    for kind, make in makers:
        if not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(make())
    # Who tells what the others have found comes after them, also when an exception ends the run.
    return sorted(callbacks, key=lambda callback: isinstance(callback, SummaryReporter))


def _logging() -> list[tuple[type, Callable[[], Callback]]]:
    from itwinai.callbacks.run_logging import LoggingCallback

    return [(LoggingCallback, LoggingCallback)]


def _watching() -> list[tuple[type, Callable[[], Callback]]]:
    """Return what watches a run, the summary last."""
    from itwinai.callbacks.profiling import ProfilingCallback
    from itwinai.callbacks.run_summary import RunSummary
    from itwinai.callbacks.system_monitor import SystemMonitor

    return [(SystemMonitor, SystemMonitor), (ProfilingCallback, ProfilingCallback), (RunSummary, RunSummary)]


class ModuleCallbacks(lightning_trainer.CallbackConnector):
    """Lets the defaults give way to callbacks of their kind that the module brings, as Lightning's own defaults do.

    Args:
        trainer: the trainer.
        stock: Lightning's connector.
        defaults: those of the trainer's callbacks that you have not given.
    """

    def __init__(self, trainer: Trainer, stock: Any, defaults: Sequence[Callback]) -> None:
        super().__init__(trainer, stock)
        self.defaults = list(defaults)

    def joined(self, brought: list[Callback]) -> None:
        """Remove the defaults of whose kind the module has brought one.

        Raises:
            ConfigurationError: a finder is among the callbacks, and there are several workers.
        """
        kinds = (LightningModelCheckpoint, ProgressBar, ModelSummary)
        brought_kinds = tuple(kind for kind in kinds if any(isinstance(callback, kind) for callback in brought))
        gone = {id(callback) for callback in self.defaults if isinstance(callback, brought_kinds)}
        callbacks = [callback for callback in lightning_trainer.callbacks(self.trainer) if id(callback) not in gone]
        lightning_trainer.set_callbacks(self.trainer, callbacks)
        check_finders(self.trainer)


def follow_module(trainer: Trainer, given: Callback | Iterable[Callback] | None) -> None:
    """Let the trainer's default callbacks give way to the module's.

    Args:
        trainer: a trainer with callbacks from `with_defaults`.
        given: the user's callbacks.
    """
    own = {id(callback) for callback in ([given] if isinstance(given, Callback) else given or ())}
    defaults = [callback for callback in lightning_trainer.callbacks(trainer) if id(callback) not in own]
    lightning_trainer.replace_callback_connector(trainer, partial(ModuleCallbacks, defaults=defaults))


_FINDERS: dict[type[Callback], tuple[str, str]] = {
    LearningRateFinder: (
        "learning-rate finder",
        "the loss of each worker by itself, and does not restore the state of every strategy",
    ),
    BatchSizeFinder: ("batch-size finder", "what fits into the memory of one process"),
}


def check_finders(trainer: Trainer) -> None:
    """Raise an error if values are searched for that only one process finds.

    Raises:
        ConfigurationError: a finder is among the callbacks, and there are several workers.
    """
    if trainer.world_size == 1 or getattr(trainer, "fast_dev_run", False):
        return
    for kind, (name, looks_at) in _FINDERS.items():
        if any(isinstance(callback, kind) for callback in lightning_trainer.callbacks(trainer)):
            raise ConfigurationError(
                f"Lightning's {name} looks at {looks_at}; this run has {trainer.world_size} workers, and would get "
                "another value than one process. Run it once with ItwinaiTrainer(devices=1, strategy='auto'), with "
                f"the batch size of all workers together, give the module the value that it finds, and train with "
                f"workers without the {name}."
            )
