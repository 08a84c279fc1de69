"""The configuration of a run as a text, without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.cli import SaveConfigCallback

from itwinai.compat import lightning_trainer
from itwinai.run_info.redaction import without_secrets
from itwinai.run_info.serialization import plain_hyperparameters

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

SETTINGS = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "val_check_interval",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "limit_train_batches",
    "limit_val_batches",
)
"""The trainer's settings that are told where there is no config file."""


def config_of(trainer: Trainer) -> str:
    """Return the configuration of a run as YAML: its resolved config file, or what is known without one.

    Args:
        trainer: the trainer of the run.
    """
    for callback in lightning_trainer.callbacks(trainer):
        if isinstance(callback, SaveConfigCallback):
            return resolved(callback)
    module, data = trainer.lightning_module, lightning_trainer.datamodule(trainer)
    config: dict[str, Any] = {
        "trainer": {name: getattr(trainer, name) for name in SETTINGS},
        "model": {"class_path": _path_of(module), "init_args": dict(module.hparams)},
    }
    if data is not None:
        config["data"] = {"class_path": _path_of(data), "init_args": dict(data.hparams)}
    return yaml.safe_dump(plain_hyperparameters(config), sort_keys=False)


def resolved(callback: SaveConfigCallback) -> str:
    """Return the config file of a command line, with everything in it that was left to defaults."""
    return str(callback.parser.dump(without_secrets(callback.config), skip_none=False, skip_validation=True))


def _path_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
