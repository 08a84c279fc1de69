"""What checkpoints are called, and where they are: the one place to change it."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

EXTENSION = ".ckpt"
"""What the names of checkpoints end with, of files and of folders of shards. Lightning adds the same one."""

FOLDER = "checkpoints"
"""The folder of a run's checkpoints, below that of its logger or ``default_root_dir``. Lightning calls it so too."""

CONTENT = "content.ckpt"
"""In a folder of shards: the file with all that is not sharded."""

PREEMPTED = "preempted"
"""Name, without the extension, of the checkpoint of a run that a signal has stopped."""

PATTERN = "{epoch}-{step}"
"""The name of a checkpoint without ``ModelCheckpoint(filename=...)``, as Lightning has it: ``epoch=2-step=300``.

Lightning calls the newest one ``last`` (``save_last=True``), and appends ``-v1``, ``-v2``, ... to a name that is taken.
``resume="auto"`` reads no names but the extension: which one is newest, and valid, is in their manifests.
"""


MODULE_CLASS = "module_class"
"""Key of a checkpoint's content: the name of its module's class, see `class_name_of`."""


def is_checkpoint(path: str) -> bool:
    """Return whether the name is that of a checkpoint."""
    return path.endswith(EXTENSION)


def text_of_earlier(path: str) -> str:
    """Return what to say of a checkpoint that got a version, as ``last-v1.ckpt``: another has the name without it."""
    name = PurePath(path).name
    plain = re.sub(r"-v\d+(?=\.ckpt$)", "", name)
    return "" if plain == name else f" ({plain} in its folder is of an earlier run, or of another epoch)"


def is_preempted(path: str) -> bool:
    """Return whether the name is that of a checkpoint of a run that a signal stopped."""
    return PurePath(path).name == f"{PREEMPTED}{EXTENSION}"


def strategy_name_of(trainer: Trainer) -> str:
    """Return the name of a run's strategy, as manifests and run pages have it; the class of one without a name."""
    return str(getattr(trainer.strategy, "strategy_name", None) or type(trainer.strategy).__name__)


def class_name_of(module: LightningModule) -> str:
    """Return the name of a module's class, as ``package.module.Class``."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def trial_folder(folder: str) -> str:
    """Return the folder of a trial's checkpoints.

    Args:
        folder: of the trial, a path or a URL.
    """
    return f"{folder.rstrip('/')}/{FOLDER}"


def report_path(folder: str, number: int) -> str:
    """Return the path of the checkpoint that belongs to a report of a trial.

    Args:
        folder: of the trial, a path or a URL.
        number: of the report; 1 for the first.
    """
    return f"{trial_folder(folder)}/report-{number:05d}{EXTENSION}"
