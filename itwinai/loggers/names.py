"""Loggers by name, for one flag: ``--logger mlflow``, ``ItwinaiTrainer(logger="csv,provenance")``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from itwinai.errors import ConfigurationError, require

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

EXPERIMENT = "lightning_logs"
"""The name under which runs are kept, where nothing else is said; lightning's own."""


def _csv(folder: str, name: str) -> Logger:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name=name)


def _jsonl(folder: str, name: str) -> Logger:
    from itwinai.loggers.jsonl import JSONLLogger

    return JSONLLogger(folder, name=name)


def _tensorboard(folder: str, name: str) -> Logger:
    require("tensorboard", "Install it with `pip install tensorboard`.", "The logger 'tensorboard'")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name=name)


def _mlflow(folder: str, name: str) -> Logger:
    require("mlflow", "Install it with `pip install 'itwinai[mlflow]'`.", "The logger 'mlflow'")
    from itwinai.loggers.mlflow import MLFlowLogger

    return MLFlowLogger(EXPERIMENT, save_dir=folder)


def _wandb(folder: str, name: str) -> Logger:
    require("wandb", "Install it with `pip install 'itwinai[wandb]'`.", "The logger 'wandb'")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(save_dir=folder, project=EXPERIMENT)


def _provenance(folder: str, name: str) -> Logger:
    require("prov", "Install it with `pip install 'itwinai[watch]'`.", "The logger 'provenance'")
    from itwinai.loggers.provenance import ProvenanceLogger

    return ProvenanceLogger(folder, name=name)


_MAKERS: dict[str, Callable[[str, str], Logger]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
    "provenance": _provenance,
}

LOGGERS = tuple(_MAKERS)


def make_loggers(names: str | Sequence[str], folder: str) -> list[Logger]:
    """Return loggers that need no server, or the one that their environment variables name.

    MLflow writes to ``MLFLOW_TRACKING_URI`` if that is set and to a sqlite file otherwise; W&B as ``WANDB_MODE`` and
    its login say; the others to files.

    Args:
        names: names of `LOGGERS`, in one text with commas between or one by one.
        folder: where they keep their files.

    Raises:
        ConfigurationError: there is no logger of a name.
        MissingPackageError: the package of a logger is not installed.
    """
    given = names.split(",") if isinstance(names, str) else names
    wanted = list(dict.fromkeys(name.strip().lower() for name in given))
    for name in wanted:
        if name not in _MAKERS:
            nearest = difflib.get_close_matches(name, LOGGERS, n=1)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise ConfigurationError(
                f"There is no logger '{name}'.{hint} The names are {', '.join(LOGGERS)}, several with commas between; "
                "any other logger is given as an object, in YAML as class_path and init_args."
            )
    # Each counts its versions by itself, so that several need folders of their own.
    return [_MAKERS[name](folder, EXPERIMENT if len(wanted) == 1 else f"{EXPERIMENT}/{name}") for name in wanted]
