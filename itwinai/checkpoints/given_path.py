"""What somebody gives as the path of a checkpoint, and is none: a folder, a script, the name in another folder."""

from __future__ import annotations

import os
from itertools import chain, islice
from pathlib import Path

import fsspec

from itwinai.checkpoints import sharded
from itwinai.checkpoints.naming import EXTENSION
from itwinai.errors import CheckpointError, MissingCheckpointError, did_you_mean_file
from itwinai.warn import warn_user

_OTHER_FILES = (".py", ".ipynb", ".yaml", ".yml", ".json", ".csv", ".txt", ".md", ".log")


def check_path(path: str, advice: str, *, folders: bool = False) -> None:
    """Raise an error for a path at which no checkpoint can be; warn of one that a later run has written beside.

    Args:
        path: as it was given, or a URL.
        advice: sentence about what to give.
        folders: whether a folder with checkpoints in it may be one itself, of a strategy's own kind.

    Raises:
        MissingCheckpointError: there is nothing.
        CheckpointError: it is a folder of checkpoints, or a file of another kind.
    """
    filesystem, place = fsspec.core.url_to_fs(path)
    if not filesystem.exists(place):
        meant = did_you_mean_file(path, checkpoints_near(path))
        raise MissingCheckpointError(f"There is no checkpoint {path} (in {os.getcwd()}).{meant} {advice}")
    if path.endswith(_OTHER_FILES):
        near = checkpoints_near(path)
        raise CheckpointError(
            f"{path} is not a checkpoint, which ends in {EXTENSION}. " + (f"There is {_few(near)}." if near else advice)
        )
    if filesystem.isdir(place) and not sharded.is_sharded(path):
        inside = sorted(name.rpartition("/")[2] for name in filesystem.ls(place, detail=False))
        checkpoints = [name for name in inside if name.endswith(EXTENSION)]
        if checkpoints or not (inside and folders):
            there = f"Name one in it ({_few(checkpoints)})" if checkpoints else "There is none in it: name another path"
            raise CheckpointError(f"{path} is a folder, and not a checkpoint. {there}, or 'auto' for the newest.")
    warn_of_newer_version(path)


def checkpoints_near(path: str) -> list[str]:
    """Return checkpoints in the folder of a path and in those within it; of the current folder, if it has none."""
    if "://" in path:
        return []
    folder = Path(path).parent if Path(path).parent.is_dir() else Path()
    found = islice(chain(folder.glob(f"*{EXTENSION}"), folder.glob(f"*/*{EXTENSION}")), 200)
    return sorted(map(str, found), key=lambda one: (one.count("/"), one))


def newer_version_of(path: str) -> str | None:
    """Return the newest version of a checkpoint, as ``best-v1.ckpt`` for ``best.ckpt``, if it is newer; else None.

    Args:
        path: of a local checkpoint.
    """
    file = Path(path)
    if "://" in path or not file.exists():
        return None
    versions = [
        one for one in file.parent.glob(f"{file.stem}-v*{EXTENSION}") if one.stem[len(file.stem) + 2 :].isdigit()
    ]
    newest = max(versions, key=lambda one: one.stat().st_mtime, default=None)
    return str(newest) if newest is not None and newest.stat().st_mtime > file.stat().st_mtime else None


def warn_of_newer_version(path: str) -> None:
    """Warn where a checkpoint is read that a later run has not replaced, but written a version of."""
    if (newer := newer_version_of(path)) is not None:
        warn_user(
            f"{path} is not the newest of its name: {newer} was written later, probably by a later run, which keeps "
            "what is there. If you want that one, name it; 'auto' takes the newest."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
