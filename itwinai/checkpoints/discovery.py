"""Find the newest checkpoint that is valid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from itwinai.checkpoints.naming import is_checkpoint
from itwinai.checkpoints.portable_file import Manifest
from itwinai.checkpoints.sharded import manifest_of, verify_any
from itwinai.errors import CheckpointError, DamagedCheckpointError
from itwinai.io.atomic import PART
from itwinai.warn import warn_user

AUTO = "auto"
"""In the place of a path: the newest valid checkpoint of the run's folders, or none."""


@dataclass(frozen=True)
class Found:
    """A checkpoint file with a manifest, which is not verified yet."""

    path: str
    manifest: Manifest


def checkpoints_in(folder: str) -> Iterator[Found | CheckpointError]:
    """Yield the checkpoints in a folder; for a damaged one the error that says so.

    Args:
        folder: a path or a URL. One that does not exist holds none.
    """
    filesystem, place = url_to_fs(folder)
    if not filesystem.isdir(place):
        return
    for name in sorted(filesystem.ls(place, detail=False)):
        base = name.rpartition("/")[2]
        if not is_checkpoint(base) or base.startswith(PART):
            continue
        path = name if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(name)
        try:
            manifest = manifest_of(path)
        except (FileNotFoundError, IsADirectoryError):  # just removed; a folder of DeepSpeed's own
            continue
        except CheckpointError as error:
            yield error
            continue
        if manifest is not None:
            yield Found(path, manifest)


def newest_valid(folders: Iterable[str], since: float = 0.0) -> str | None:
    """Return the path of the newest checkpoint that can be resumed from and verifies; None if there is none.

    Damaged ones are named in a warning.

    Args:
        folders: where to look.
        since: only those that were written later; seconds since 1970.
    """
    found: dict[str, Found] = {}
    for folder in folders:
        for checkpoint in checkpoints_in(folder):
            if isinstance(checkpoint, Found):
                found[checkpoint.path] = checkpoint
            elif isinstance(checkpoint, DamagedCheckpointError):
                warn_user(f"skipped: {checkpoint.path} is damaged: {checkpoint.reason}")
    for checkpoint in _newest_first(found.values(), since):
        try:
            verify_any(checkpoint.path)
        except DamagedCheckpointError as error:
            warn_user(f"skipped: {error.path} is damaged: {error.reason}")
        except FileNotFoundError:
            continue
        else:
            return checkpoint.path
    return None


def newest_unverified(folders: Iterable[str], since: float) -> str | None:
    """Return the path of the newest checkpoint by its manifest: to verify a large one takes a while.

    Args:
        folders: where to look.
        since: only those that were written later; seconds since 1970.
    """
    found = [one for folder in folders for one in checkpoints_in(folder) if isinstance(one, Found)]
    return next((checkpoint.path for checkpoint in _newest_first(found, since)), None)


def _newest_first(found: Iterable[Found], since: float) -> list[Found]:
    """Return those checkpoints that a run can resume from, the newest first."""
    resumable = [one for one in found if one.manifest.about.get("resumable") and one.manifest.written_at >= since]
    return sorted(resumable, key=_age, reverse=True)


def _age(checkpoint: Found) -> tuple[Any, ...]:
    manifest = checkpoint.manifest
    return manifest.written_at, manifest.about.get("global_step") or 0
