"""Where metrics go: loggers of our own, and what can be given to any logger. Everything is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.loggers.jsonl import JSONLLogger
    from itwinai.loggers.mlflow import MLFlowLogger
    from itwinai.loggers.provenance import ProvenanceLogger

__all__ = ["JSONLLogger", "MLFlowLogger", "ProvenanceLogger"]

_MODULES = {
    "JSONLLogger": "itwinai.loggers.jsonl",
    "MLFlowLogger": "itwinai.loggers.mlflow",
    "ProvenanceLogger": "itwinai.loggers.provenance",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'itwinai.loggers' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
