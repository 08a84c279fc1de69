"""What watches a run. Every class is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.callbacks.model_checkpoint import ModelCheckpoint
    from itwinai.callbacks.prediction_writer import PredictionWriter
    from itwinai.callbacks.profiling import ProfilingCallback
    from itwinai.callbacks.progress_bar import TimedProgressBar
    from itwinai.callbacks.run_logging import LoggingCallback
    from itwinai.callbacks.run_summary import RunSummary
    from itwinai.callbacks.system_monitor import SystemMonitor
    from itwinai.callbacks.tune_report import TuneReportCallback

__all__ = [
    "LoggingCallback",
    "ModelCheckpoint",
    "PredictionWriter",
    "ProfilingCallback",
    "RunSummary",
    "SystemMonitor",
    "TimedProgressBar",
    "TuneReportCallback",
]

_MODULES = {
    "LoggingCallback": "itwinai.callbacks.run_logging",
    "ModelCheckpoint": "itwinai.callbacks.model_checkpoint",
    "PredictionWriter": "itwinai.callbacks.prediction_writer",
    "ProfilingCallback": "itwinai.callbacks.profiling",
    "RunSummary": "itwinai.callbacks.run_summary",
    "SystemMonitor": "itwinai.callbacks.system_monitor",
    "TimedProgressBar": "itwinai.callbacks.progress_bar",
    "TuneReportCallback": "itwinai.callbacks.tune_report",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'itwinai.callbacks' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
