"""What a logger can take beyond metrics and hyperparameters: facts, files, figures, models, runs of single ranks.

One file per kind of logger; `adapters_of` finds those of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from itwinai.loggers.adapters.base import LoggerAdapter

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger

__all__ = ["LoggerAdapter", "adapter_of", "adapters_of"]

# By the name of the class: to ask by the class itself would import MLflow and W&B.
_ADAPTERS = {
    "CSVLogger": "itwinai.loggers.adapters.folder:FolderAdapter",
    "JSONLLogger": "itwinai.loggers.adapters.folder:FolderAdapter",
    "TensorBoardLogger": "itwinai.loggers.adapters.tensorboard:TensorBoardAdapter",
    "MLFlowLogger": "itwinai.loggers.adapters.mlflow:MLflowAdapter",
    "WandbLogger": "itwinai.loggers.adapters.wandb:WandbAdapter",
    "ProvenanceLogger": "itwinai.loggers.adapters.provenance:ProvenanceAdapter",
}


def adapters_of(trainer: Trainer) -> list[LoggerAdapter]:
    """Return an adapter for each logger of the trainer, for callbacks that log figures, files or models."""
    return [adapter_of(logger) for logger in trainer.loggers]


def adapter_of(logger: Logger) -> LoggerAdapter:
    """Return the adapter for a logger; that of an unknown class logs hyperparameters only."""
    for cls in type(logger).__mro__:
        if cls.__name__ in _ADAPTERS:
            module, _, name = _ADAPTERS[cls.__name__].partition(":")
            make: Callable[[Logger], LoggerAdapter] = getattr(import_module(module), name)
            return make(logger)
    return LoggerAdapter(logger)
