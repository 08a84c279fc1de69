"""The callbacks that a trainer has unless there are others of their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from itwinai.callbacks.checkpointing import ModelCheckpoint
from itwinai.callbacks.progress import TimedProgressBar


def with_defaults(
    given: Callback | Iterable[Callback] | None, flags: Mapping[str, Any], watch: bool, logs: bool
) -> list[Callback]:
    """Return the user's callbacks, and those that come with an `ItwinaiTrainer`.

    Args:
        given: the user's.
        flags: arguments of the trainer; ``enable_progress_bar`` and ``enable_checkpointing`` count.
        watch: add those that watch a run.
        logs: whether there is a logger.
    """
    callbacks = [given] if isinstance(given, Callback) else list(given or ())
    makers: list[tuple[type, Callable[[], Callback]]] = _watching(logs) if watch else []
    if flags.get("enable_progress_bar") is not False:
        makers.append((ProgressBar, TimedProgressBar))
    if flags.get("enable_checkpointing") is not False:
        makers.append((Checkpoint, ModelCheckpoint))
    for kind, make in makers:
        if not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(make())
    return callbacks


def _watching(logs: bool) -> list[tuple[type, Callable[[], Callback]]]:
    """Return what watches a run, the summary last; without a logger there is nothing to log to."""
    from itwinai.callbacks.logging import LoggingCallback
    from itwinai.callbacks.monitoring import SystemMonitor
    from itwinai.callbacks.profiling import ProfilingCallback
    from itwinai.callbacks.summary import RunSummary

    watching: list[tuple[type, Callable[[], Callback]]] = [
        (SystemMonitor, SystemMonitor),
        (ProfilingCallback, ProfilingCallback),
        (RunSummary, RunSummary),
    ]
    return [(LoggingCallback, LoggingCallback), *watching] if logs else watching
