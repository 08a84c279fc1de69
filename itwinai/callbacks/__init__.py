"""What watches a run. Every class is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.callbacks.checkpointing import ModelCheckpoint
    from itwinai.callbacks.progress import TimedProgressBar

__all__ = ["ModelCheckpoint", "TimedProgressBar"]

_MODULES = {
    "ModelCheckpoint": "itwinai.callbacks.checkpointing",
    "TimedProgressBar": "itwinai.callbacks.progress",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'itwinai.callbacks' has no attribute '{name}'")
