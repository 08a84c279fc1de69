"""Find the newest checkpoint that is valid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from itwinai.checkpoints import portable_file
from itwinai.checkpoints.naming import is_checkpoint
from itwinai.checkpoints.portable_file import Manifest
from itwinai.checkpoints.sharded import first_not_finite, is_sharded, manifest_of, verify_any
from itwinai.errors import CheckpointError, DamagedCheckpointError
from itwinai.io.atomic import PART
from itwinai.warn import warn_user

AUTO = "auto"
"""In the place of a path: the newest valid checkpoint of the run's folders, or none."""

UNNAMED = "the newest"
"""The same where no checkpoint is named, and weights that were trained are wanted."""


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


def newest_valid(folders: Iterable[str], since: float = 0.0, parameters: Collection[str] = ()) -> str | None:
    """Return the path of the newest checkpoint that can be resumed from and verifies; None if there is none.

    Damaged ones are named in a warning. So are those of a run that has diverged, whose parameters are NaN or infinite:
    an older one is taken, or the newest where all are like that.

    Args:
        folders: where to look.
        since: only those that were written later; seconds since 1970.
        parameters: names of weights that have to be finite. Buffers need not be: a mask may hold infinities.
    """
    found: dict[str, Found] = {}
    for folder in folders:
        for checkpoint in checkpoints_in(folder):
            if isinstance(checkpoint, Found):
                found[checkpoint.path] = checkpoint
            elif isinstance(checkpoint, DamagedCheckpointError):
                warn_user(f"skipped: {checkpoint.path} is damaged: {checkpoint.reason}")
    diverged: list[str] = []
    for checkpoint in _newest_first(found.values(), since):
        try:
            verify_any(checkpoint.path)
            name = parameters and _first_not_finite(checkpoint.path, parameters)
        except DamagedCheckpointError as error:
            warn_user(f"skipped: {error.path} is damaged: {error.reason}")
        except FileNotFoundError:
            continue
        else:
            if not name:
                _warn_of_diverged(diverged, checkpoint)
                return checkpoint.path
            diverged.append(checkpoint.path)
    if diverged:
        warn_user(
            f"All checkpoints hold parameters that are NaN or infinite, and the newest is used: {diverged[0]}. A run "
            "cannot recover from that. Start it again without a checkpoint, with a lower learning rate or "
            "gradient_clip_val; in another folder, if it resumes by 'auto'."
        )
    return diverged[0] if diverged else None


def newest_unverified(folders: Iterable[str], since: float) -> str | None:
    """Return the path of the newest checkpoint by its manifest: to verify a large one takes a while.

    Args:
        folders: where to look.
        since: only those that were written later; seconds since 1970.
    """
    found = [one for folder in folders for one in checkpoints_in(folder) if isinstance(one, Found)]
    return next((checkpoint.path for checkpoint in _newest_first(found, since)), None)


def _first_not_finite(path: str, parameters: Collection[str]) -> str | None:
    """Return the name of a parameter that holds NaN or infinite values; None if there is none."""
    if is_sharded(path):
        return first_not_finite(Path(path), parameters)
    weights = portable_file.read_weights(path)
    return next((name for name in parameters if name in weights and not weights[name].isfinite().all()), None)


def _warn_of_diverged(diverged: list[str], taken: Found) -> None:
    if diverged:
        about = taken.manifest.about
        warn_user(
            f"skipped, as their parameters are NaN or infinite: {', '.join(diverged)}. The newest whose parameters are "
            f"finite is used instead: {taken.path} (epoch {about.get('epoch')}, step {about.get('global_step')}). The "
            "run may diverge again: lower the learning rate or set gradient_clip_val. For another one give its path."
        )


def _newest_first(found: Iterable[Found], since: float) -> list[Found]:
    """Return those checkpoints that a run can resume from, the newest first."""
    resumable = [one for one in found if one.manifest.about.get("resumable") and one.manifest.written_at >= since]
    return sorted(resumable, key=_age, reverse=True)


def _age(checkpoint: Found) -> tuple[Any, ...]:
    manifest = checkpoint.manifest
    return manifest.written_at, manifest.about.get("global_step") or 0
