"""Find the module that a path or an address of MLflow stands for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from itwinai.checkpoints.module_loading import load_module, module_of
from itwinai.errors import CheckpointError, MissingCheckpointError, require
from itwinai.loggers.adapters.mlflow import CHECKPOINT

_MLFLOW_ADDRESSES = ("models:", "runs:", "mlflow-artifacts:")
_DESCRIPTION = "MLmodel"  # file of MLflow in the folder of each model


def load_any(
    source: str | Path,
    module_class: type[LightningModule] | str | None,
    init_args: Mapping[str, Any] | None,
    weights_only: bool,
) -> nn.Module:
    """Load a trained module, on the CPU; see `itwinai.Predictor.load` for the arguments and the errors."""
    if str(source).startswith(_MLFLOW_ADDRESSES):
        with tempfile.TemporaryDirectory() as folder:
            found = _downloaded(str(source), folder)
            return _of_mlflow_model(found, str(source), module_class, init_args, weights_only)
    path = Path(source)
    if (path / _DESCRIPTION).is_file():
        return _of_mlflow_model(path, str(source), module_class, init_args, weights_only)
    if "://" not in str(source) and path.is_dir():
        from itwinai.strategies.deepspeed import is_engine_checkpoint

        if is_engine_checkpoint(path):
            return _of_engine_folder(path, module_class, init_args, weights_only)
    return load_module(source, module_class, init_args, weights_only)


def _downloaded(address: str, folder: str) -> Path:
    require("mlflow", "Install it with `pip install 'itwinai[mlflow]'`.", address)
    import mlflow
    from mlflow.exceptions import MlflowException

    server = mlflow.get_tracking_uri()
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder))
    except (MlflowException, OSError) as error:
        text = str(error).strip().splitlines()[0]
        raise MissingCheckpointError(
            f"{address} cannot be loaded from MLflow at {server}: {text} Set MLFLOW_TRACKING_URI if it is elsewhere. A "
            "model of a run is runs:/RUN_ID/model, one of the registry models:/NAME/VERSION."
        ) from error


def _of_mlflow_model(
    folder: Path,
    source: str,
    module_class: type[LightningModule] | str | None,
    init_args: Mapping[str, Any] | None,
    weights_only: bool,
) -> nn.Module:
    found = sorted(folder.rglob(CHECKPOINT))
    if found:
        return load_module(found[0], module_class, init_args, weights_only)
    if not (folder / _DESCRIPTION).is_file():
        raise CheckpointError(f"{source} is not an MLflow model: it has no file {_DESCRIPTION}.")
    if weights_only:
        raise CheckpointError(
            f"The MLflow model {source} has no checkpoint in it, and its module is pickled: to load it can execute any "
            "code. Models that LoggingCallback(model=True) logs have one. If you trust it, pass weights_only=False."
        )
    import mlflow.pytorch

    module: nn.Module = mlflow.pytorch.load_model(str(folder), map_location="cpu")
    return module


def _of_engine_folder(
    folder: Path,
    module_class: type[LightningModule] | str | None,
    init_args: Mapping[str, Any] | None,
    weights_only: bool,
) -> nn.Module:
    if weights_only:
        raise CheckpointError(
            f"{folder} is a DeepSpeed engine's folder, whose files are pickled: to load them can execute any code. If "
            "you trust it, pass weights_only=False, or convert it once: itwinai checkpoint convert --unsafe."
        )
    require("deepspeed", "Install it with `pip install 'itwinai[deepspeed]'`.", str(folder))
    from itwinai.strategies.deepspeed import read_engine_checkpoint

    return module_of(read_engine_checkpoint(folder), str(folder), module_class, init_args)
