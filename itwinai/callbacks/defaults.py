"""The callbacks that a trainer has unless there are others of their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from itwinai.callbacks.checkpointing import ModelCheckpoint
from itwinai.callbacks.progress import TimedProgressBar
from itwinai.report.telling import Telling


def with_defaults(
    given: Callback | Iterable[Callback] | None, flags: Mapping[str, Any], watch: bool, loggers: Any
) -> list[Callback]:
    """Return the user's callbacks, and those that come with an `ItwinaiTrainer`.

    Args:
        given: the user's.
        flags: arguments of the trainer; ``enable_progress_bar`` and ``enable_checkpointing`` count.
        watch: add those that watch a run.
        loggers: as lightning takes them; False is none, and then there is nothing to log to.
    """
    callbacks = [given] if isinstance(given, Callback) else list(given or ())
    makers: list[tuple[type, Callable[[], Callback]]] = []
    if watch:
        makers += _watching() if loggers is False else _logging() + _watching()
    if flags.get("enable_progress_bar") is not False:
        makers.append((ProgressBar, TimedProgressBar))
    if flags.get("enable_checkpointing") is not False:
        makers.append((Checkpoint, ModelCheckpoint))
    for kind, make in makers:
        if not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(make())
    # Who tells what the others have found comes after them, also when an exception ends the run.
    return sorted(callbacks, key=lambda callback: isinstance(callback, Telling))


def _logging() -> list[tuple[type, Callable[[], Callback]]]:
    from itwinai.callbacks.logging import LoggingCallback

    return [(LoggingCallback, LoggingCallback)]


def _watching() -> list[tuple[type, Callable[[], Callback]]]:
    """Return what watches a run, the summary last."""
    from itwinai.callbacks.monitoring import SystemMonitor
    from itwinai.callbacks.profiling import ProfilingCallback
    from itwinai.callbacks.summary import RunSummary

    return [(SystemMonitor, SystemMonitor), (ProfilingCallback, ProfilingCallback), (RunSummary, RunSummary)]
