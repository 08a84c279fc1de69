"""Loggers by name, for one flag: ``--logger mlflow``, ``ItwinaiTrainer(logger="csv,provenance")``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from itwinai.errors import ConfigurationError, did_you_mean, require

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

EXPERIMENT = "lightning_logs"
"""The name under which runs are kept, where nothing else is said; Lightning's own."""

_LIGHTNINGS, _OURS = "lightning.pytorch.loggers", "itwinai.loggers"


@dataclass(frozen=True)
class LoggerKind:
    """A kind of logger that has a name.

    Attributes:
        name: of the kind.
        class_path: of its loggers.
        package: that has to be installed for it; empty if it needs none.
        requirement: what is given to pip for that.
    """

    name: str
    class_path: str
    package: str = ""
    requirement: str = ""

    def check_installed(self) -> None:
        """Raise an error if its package is not there.

        Raises:
            MissingPackageError: the package is not installed.
        """
        if self.package:
            require(self.package, f"Install it with `pip install {self.requirement}`.", f"The logger '{self.name}'")

    def make(self, folder: str, name: str) -> Logger:
        """Return a logger of this kind.

        Args:
            folder: where it keeps its files.
            name: of a folder below that one, where it has such.
        """
        self.check_installed()
        module, _, cls = self.class_path.rpartition(".")
        logger = getattr(import_module(module), cls)
        if self.name == "mlflow":
            made = logger(EXPERIMENT, save_dir=folder)
        elif self.name == "wandb":
            made = logger(save_dir=folder, project=EXPERIMENT)
        else:
            made = logger(folder, name=name)
        return cast("Logger", made)


_KINDS = (
    LoggerKind("csv", f"{_LIGHTNINGS}.CSVLogger"),
    LoggerKind("jsonl", f"{_OURS}.JSONLLogger"),
    LoggerKind("tensorboard", f"{_LIGHTNINGS}.TensorBoardLogger", "tensorboard", "tensorboard"),
    LoggerKind("mlflow", f"{_OURS}.MLFlowLogger", "mlflow", "'itwinai[mlflow]'"),
    LoggerKind("wandb", f"{_LIGHTNINGS}.WandbLogger", "wandb", "'itwinai[wandb]'"),
    LoggerKind("provenance", f"{_OURS}.ProvenanceLogger", "prov", "'itwinai[watch]'"),
)

LOGGERS = {kind.name: kind for kind in _KINDS}
"""Kinds of loggers by name."""


def check_logger_names(names: str | Sequence[str]) -> list[str]:
    """Return the names of loggers one by one.

    Args:
        names: names of `LOGGERS`, in one text with commas between or one by one.

    Raises:
        ConfigurationError: there is no logger of a name.
    """
    given = names.split(",") if isinstance(names, str) else names
    wanted = list(dict.fromkeys(name.strip().lower() for name in given))
    for name in wanted:
        if name not in LOGGERS:
            raise ConfigurationError(
                f"There is no logger '{name}'.{did_you_mean(name, LOGGERS)} The names are {', '.join(LOGGERS)}, "
                "several with commas between; any other logger is given as an object, in YAML as class_path and "
                "init_args.",
                argument="logger",
            )
    return wanted


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
    wanted = check_logger_names(names)
    # Each counts its versions by itself, so that several need folders of their own.
    return [LOGGERS[name].make(folder, EXPERIMENT if len(wanted) == 1 else f"{EXPERIMENT}/{name}") for name in wanted]
