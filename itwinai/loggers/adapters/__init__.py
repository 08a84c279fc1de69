"""What a logger can take beyond metrics and hyperparameters: facts, files, figures, models, runs of single ranks.

One file per kind of logger; `sink_of` finds the one that fits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from itwinai.loggers.adapters.base import Sink

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

__all__ = ["Sink", "sink_of"]

# By the name of the class: to ask by the class itself would import MLflow and W&B.
_SINKS = {
    "CSVLogger": "itwinai.loggers.adapters.folder:FolderSink",
    "JSONLLogger": "itwinai.loggers.adapters.folder:FolderSink",
    "TensorBoardLogger": "itwinai.loggers.adapters.tensorboard:TensorBoardSink",
    "MLFlowLogger": "itwinai.loggers.adapters.mlflow:MLflowSink",
    "WandbLogger": "itwinai.loggers.adapters.wandb:WandbSink",
    "ProvenanceLogger": "itwinai.loggers.adapters.provenance:ProvenanceSink",
}


def sink_of(logger: Logger) -> Sink:
    """Return what a logger can take; an unknown logger gets hyperparameters only."""
    for cls in type(logger).__mro__:
        if cls.__name__ in _SINKS:
            module, _, name = _SINKS[cls.__name__].partition(":")
            make: Callable[[Logger], Sink] = getattr(import_module(module), name)
            return make(logger)
    return Sink(logger)
