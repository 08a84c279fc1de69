"""Loggers by name, for one flag: ``--logger mlflow``, ``ItwinaiTrainer(logger="csv,provenance")``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from itwinai import plugins
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
"""Kinds of loggers by name, those of plugins aside."""


def logger_kind(name: str) -> LoggerKind:
    """Return the kind of logger that a name stands for, of this package or of a plugin.

    Args:
        name: in lower case.

    Raises:
        ConfigurationError: there is no logger of that name.
        PluginError: the name is that of a plugin which cannot be used.
    """
    if name in LOGGERS:
        return LOGGERS[name]
    plugin = plugins.find_plugin(plugins.LOGGERS, name)
    if plugin is not None:
        return kind_of(plugin)
    names = [*LOGGERS, *(one.name for one in plugins.find_plugins(plugins.LOGGERS))]
    raise ConfigurationError(
        f"There is no logger '{name}'.{did_you_mean(name, names)} The names are {', '.join(dict.fromkeys(names))}, "
        "several with commas between; any other logger is given as an object, in YAML as class_path and init_args.",
        argument="logger",
    )


def kind_of(plugin: plugins.Plugin) -> LoggerKind:
    """Return the kind of logger that a plugin adds.

    Raises:
        PluginError: it cannot be loaded, or is no class of loggers.
    """
    from lightning.pytorch.loggers import Logger

    cls = plugin.load()
    if not isinstance(cls, type) or not issubclass(cls, Logger):
        raise plugin.error(f"{plugin.value} is not a class of Lightning's Logger")
    if plugin.name != plugin.name.lower():
        raise plugin.error("names of loggers are in lower case")
    return LoggerKind(plugin.name, plugin.class_path)


def check_logger_names(names: str | Sequence[str]) -> list[str]:
    """Return the names of loggers one by one.

    Args:
        names: names of `LOGGERS` and of plugins, in one text with commas between or one by one.

    Raises:
        ConfigurationError: there is no logger of a name.
        PluginError: a name is that of a plugin which cannot be used.
    """
    given = names.split(",") if isinstance(names, str) else names
    wanted = list(dict.fromkeys(name.strip().lower() for name in given))
    for name in wanted:
        logger_kind(name)
    return wanted


def make_loggers(names: str | Sequence[str], folder: str) -> list[Logger]:
    """Return loggers that need no server, or the one that their environment variables name.

    MLflow writes to ``MLFLOW_TRACKING_URI`` if that is set and to a sqlite file otherwise; W&B as ``WANDB_MODE`` and
    its login say; the others to files.

    Args:
        names: names of `LOGGERS` and of plugins, in one text with commas between or one by one.
        folder: where they keep their files.

    Raises:
        ConfigurationError: there is no logger of a name.
        MissingPackageError: the package of a logger is not installed.
    """
    wanted = check_logger_names(names)
    # Each counts its versions by itself, so that several need folders of their own.
    return [
        logger_kind(name).make(folder, EXPERIMENT if len(wanted) == 1 else f"{EXPERIMENT}/{name}") for name in wanted
    ]
