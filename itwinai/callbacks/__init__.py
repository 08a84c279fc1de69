"""What watches a run. Every class is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.callbacks.checkpointing import ModelCheckpoint
    from itwinai.callbacks.logging import LoggingCallback
    from itwinai.callbacks.monitoring import SystemMonitor
    from itwinai.callbacks.profiling import ProfilingCallback
    from itwinai.callbacks.progress import TimedProgressBar
    from itwinai.callbacks.summary import RunSummary
    from itwinai.callbacks.tune import TuneReportCallback

__all__ = [
    "LoggingCallback",
    "ModelCheckpoint",
    "ProfilingCallback",
    "RunSummary",
    "SystemMonitor",
    "TimedProgressBar",
    "TuneReportCallback",
]

_MODULES = {
    "LoggingCallback": "itwinai.callbacks.logging",
    "ModelCheckpoint": "itwinai.callbacks.checkpointing",
    "ProfilingCallback": "itwinai.callbacks.profiling",
    "RunSummary": "itwinai.callbacks.summary",
    "SystemMonitor": "itwinai.callbacks.monitoring",
    "TimedProgressBar": "itwinai.callbacks.progress",
    "TuneReportCallback": "itwinai.callbacks.tune",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'itwinai.callbacks' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
