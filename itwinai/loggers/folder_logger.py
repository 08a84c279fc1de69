"""Loggers that keep what they are given in a folder of this machine, one for each version of a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lightning.pytorch.loggers import Logger

from itwinai.errors import ConfigurationError

_VERSION = re.compile(r"version_(\d+)")


class FolderLogger(Logger):
    """Logs to ``save_dir/name/version_0``, ``version_1``..., as Lightning's CSVLogger does.

    Args:
        save_dir: the folder that holds all runs.
        name: of the folder below it; None or an empty one for none.
        version: number or name of the run. A version that exists is continued. By default the number after the highest
            one that is there.

    Raises:
        ConfigurationError: ``save_dir`` is an address and not a folder.
    """

    def __init__(self, save_dir: str | os.PathLike[str], name: str | None, version: int | str | None) -> None:
        super().__init__()
        if "://" in os.fspath(save_dir):
            raise ConfigurationError(
                f"save_dir={os.fspath(save_dir)!r} is an address, and {type(self).__name__} writes to folders of this "
                "machine only: what it writes grows, or is replaced, during the run. Give it a folder, and copy "
                "that when the run has ended."
            )
        self._save_dir = os.fspath(save_dir)
        self._name = name or ""
        self._version = version

    @property
    def name(self) -> str:
        """The name of the folder of all versions."""
        return self._name

    @property
    def version(self) -> int | str:
        """The version of the run; the next one that is free, unless one was given."""
        if self._version is None:
            self._version = self._next_version()
        return self._version

    @property
    def save_dir(self) -> str:
        """The folder that holds all runs."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """The folder of all versions."""
        return os.path.join(self.save_dir, self.name)

    @property
    def log_dir(self) -> str:
        """The folder of this run."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self.root_dir, version)

    def _next_version(self) -> int:
        root = Path(self.root_dir)
        folders = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        taken = [int(found[1]) for name in folders if (found := _VERSION.fullmatch(name))]
        return max(taken, default=-1) + 1
