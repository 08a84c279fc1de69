"""Make the module that a checkpoint belongs to: of the class that it names, with its hyperparameters and weights."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.migration import migrate_checkpoint

from itwinai.checkpoints import sharded
from itwinai.checkpoints.given_path import check_path
from itwinai.checkpoints.naming import MODULE_CLASS
from itwinai.compat import lightning_checkpoints
from itwinai.errors import CheckpointError, ConfigurationError, did_you_mean


def load_module(
    path: str | Path,
    module_class: type[LightningModule] | str | None = None,
    init_args: Mapping[str, Any] | None = None,
    weights_only: bool = True,
) -> LightningModule:
    """Verify a checkpoint and make its module, on the CPU.

    Args:
        path: of a file that itwinai or Lightning has written, of a folder of shards, or a URL of a file.
        module_class: the class, or its name as ``package.module.Class``. By default the one that the checkpoint names:
            itwinai's do, and Lightning's where LightningCLI has chosen the class.
        init_args: arguments of the class beside the hyperparameters in the checkpoint, or in their place.
        weights_only: see `itwinai.checkpoints.portable_file.read`.

    Raises:
        MissingCheckpointError: there is no such file.
        CheckpointError: it is damaged, has no weights, lacks hyperparameters, or does not match the class.
        ConfigurationError: the class is not named anywhere, or cannot be found.
    """
    return module_of(_read(str(path), weights_only), str(path), module_class, init_args)


def module_of(
    checkpoint: dict[str, Any],
    path: str,
    module_class: type[LightningModule] | str | None = None,
    init_args: Mapping[str, Any] | None = None,
) -> LightningModule:
    """Make the module of a checkpoint that has been read; see `load_module`.

    Args:
        checkpoint: its content, which is used up.
        path: of the checkpoint, for messages.
        module_class: as in `load_module`.
        init_args: as in `load_module`.
    """
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} has no 'state_dict': it holds no module's weights.")
    checkpoint.pop("optimizer_states", None)  # often twice as large as the weights
    if "pytorch-lightning_version" in checkpoint:
        checkpoint, _ = migrate_checkpoint(checkpoint)
    found = _class_of(checkpoint, path, module_class)
    given = dict(init_args or {})
    _check_arguments(found, checkpoint, given, path)
    try:
        return lightning_checkpoints.module_from(found, checkpoint, given)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise CheckpointError(
            f"The weights in {path} do not match {found.__name__}: {error}. Pass the class and the init_args that the "
            "checkpoint was trained with."
        ) from error


def find_class(name: str) -> type[LightningModule]:
    """Import a LightningModule's class.

    Args:
        name: as ``package.module.Class``.

    Raises:
        ConfigurationError: there is no class of this name.
    """
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        inside = " It was defined inside of a function." if "<locals>" in name else ""
        raise ConfigurationError(f"'{name}' cannot be imported.{inside} Write a class as package.module.Class.")
    main = parts[0] == "__main__"
    found = _attribute(sys.modules["__main__"], parts[1:]) if main else _imported(name, parts)
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise ConfigurationError(f"'{name}' is not a LightningModule, but {found!r}.")
    return found


def _imported(name: str, parts: list[str]) -> Any:
    for length in range(len(parts) - 1, 0, -1):
        package = ".".join(parts[:length])
        try:
            module = import_module(package)
        except ModuleNotFoundError as error:
            if error.name is not None and (package == error.name or package.startswith(f"{error.name}.")):
                continue
            raise  # the module is there, and imports one that is missing
        return _attribute(module, parts[length:])
    raise ConfigurationError(
        f"The class '{name}' cannot be imported: No module named '{parts[0]}'. Run where its file is, or add the "
        "file's folder to PYTHONPATH."
    )


def _attribute(module: Any, names: list[str]) -> Any:
    found = module
    for name in names:
        try:
            found = getattr(found, name)
        except AttributeError:
            meant = did_you_mean(name, [one for one in dir(found) if not one.startswith("_")])
            raise ConfigurationError(f"'{module.__name__}' has no class '{'.'.join(names)}'.{meant}") from None
    return found


def _class_of(
    checkpoint: Mapping[str, Any], path: str, given: type[LightningModule] | str | None
) -> type[LightningModule]:
    if isinstance(given, str):
        return find_class(given)
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, LightningModule)):
            raise ConfigurationError(f"module_class must be a LightningModule class or its name; got {given!r}.")
        return given
    name = checkpoint.get(MODULE_CLASS) or checkpoint.get("hyper_parameters", {}).get("_class_path")
    if not isinstance(name, str):
        raise ConfigurationError(f"{path} does not name the class of its module. Pass module_class.")
    try:
        return find_class(name)
    except ConfigurationError as error:
        script = " (`__main__` is the script that was run.)" if name.startswith("__main__.") else ""
        raise ConfigurationError(f"{path} is of the class '{name}'. {error}{script} Or pass module_class.") from None


def _check_arguments(
    module_class: type[LightningModule], checkpoint: Mapping[str, Any], given: Mapping[str, Any], path: str
) -> None:
    """Make sure that there is a value for each argument that has no default."""
    saved = checkpoint.get("hyper_parameters", {})
    if "_instantiator" in saved:  # of LightningCLI, which knows what to make of nested values
        return
    parameters = inspect.signature(module_class).parameters
    as_one = checkpoint.get("hparams_name")
    known = {as_one} if as_one in parameters else set(saved)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in known
        and name not in given
    ]
    if missing:
        raise CheckpointError(
            f"{path} holds no value for {', '.join(missing)} of {module_class.__name__}: its __init__ has not called "
            f"save_hyperparameters(), or leaves them out. Pass init_args={{'{missing[0]}': ...}}."
        )


def _read(path: str, weights_only: bool) -> dict[str, Any]:
    check_path(path, "The last line of a run names its checkpoint.")
    return sharded.read_any(path, weights_only)
