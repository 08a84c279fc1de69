"""A checkpoint as a folder, for models that no single host can hold: each worker writes the part that it has.

The folder holds what ``torch.distributed.checkpoint`` writes, one flat tensor per parameter and per state of the
optimizer, each in the parts of its workers; and ``content.ckpt``, a checkpoint file with everything else, whose
manifest guards the other files too. Like a file it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from itwinai.checkpoints import content, file
from itwinai.checkpoints.file import Manifest
from itwinai.errors import CheckpointError, DamagedCheckpointError
from itwinai.files.whole import PART, part_name

CONTENT = "content.ckpt"

SHARDED = "sharded"
"""Key of what a file needs of its folder: the shapes of the parameters, and the optimizer's sharded states."""


def is_sharded(path: str | PurePath) -> bool:
    """Tell whether a path is the folder of a sharded checkpoint."""
    return (Path(path) / CONTENT).is_file()


def key_of_weight(name: str) -> str:
    """Return the key of a parameter."""
    return f"weights/{name}"


def key_of_state(kind: str, name: str) -> str:
    """Return the key of a state of the optimizer, as ``exp_avg``, that belongs to a parameter."""
    return f"optimizer/{kind}/{name}"


def write(
    tensors: Mapping[str, Tensor],
    checkpoint: Mapping[str, Any],
    folder: Path,
    is_first: bool,
    broadcast: Callable[[Any], Any],
    gather: Callable[[Any], list[Any]],
) -> None:
    """Write a sharded checkpoint; all workers have to call it.

    Args:
        tensors: by key, as DTensors of which each worker has its part.
        checkpoint: everything else; that of the first worker counts.
        folder: to write; one of the same name stays valid until the new one is whole.
        is_first: whether this is rank 0.
        broadcast: returns rank 0's object on all workers.
        gather: returns the objects of all workers, by rank.
    """
    part: Path = broadcast(folder.with_name(part_name(folder.name)))
    if is_first:
        part.mkdir(parents=True)
    gather(None)  # the folder is there
    dcp.save(dict(tensors), checkpoint_id=part)
    mine = [path for path in sorted(part.iterdir()) if path.name.startswith(f"__{torch.distributed.get_rank()}_")]
    hashes = gather({path.name: _flushed_hash(path) for path in mine})
    if is_first:
        hashes.append({".metadata": _flushed_hash(part / ".metadata")})
        files = {name: value for found in hashes for name, value in found.items()}
        about = {**content.describe(checkpoint), "files": files}
        file.write(checkpoint, part / CONTENT, about, written_at=time.time())
        _put_in_place(part, folder)
    gather(None)  # nobody goes on before it is in its place


def _flushed_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _put_in_place(part: Path, folder: Path) -> None:
    older = folder.with_name(f"{PART}older-{part.name.removeprefix(PART)}")
    if folder.exists():
        folder.rename(older)
    part.rename(folder)
    shutil.rmtree(older, ignore_errors=True)


def verify(folder: Path) -> Manifest:
    """Read a whole folder and compare it with its manifest.

    Raises:
        DamagedCheckpointError: a file is missing or damaged.
    """
    manifest = file.verify(folder / CONTENT)
    if manifest is None:
        raise DamagedCheckpointError(str(folder), f"{CONTENT} has no manifest")
    for name, wanted in manifest.about["files"].items():
        if not (folder / name).is_file():
            raise DamagedCheckpointError(str(folder), f"{name} is missing")
        if _flushed_hash(folder / name) != wanted:
            raise DamagedCheckpointError(str(folder), f"{name} does not have the checksum of the manifest")
    return manifest


def manifest_of(path: str | PurePath) -> Manifest | None:
    """Read the manifest of a checkpoint that may be a file or a folder."""
    return file.read_manifest(f"{path}/{CONTENT}" if is_sharded(path) else path)


def verify_any(path: str | PurePath) -> Manifest | None:
    """Verify a checkpoint that may be a file or a folder."""
    return verify(Path(path)) if is_sharded(path) else file.verify(path)


def read_any(path: str | PurePath, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint that may be a file or a folder, with whole tensors."""
    return read_whole(Path(path), weights_only) if is_sharded(path) else file.read(path, weights_only)


def read_content(folder: Path, weights_only: bool = True) -> dict[str, Any]:
    """Verify a folder, and read everything but the sharded tensors."""
    verify(folder)
    return file.read(folder / CONTENT, weights_only)


def read_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Read this worker's parts of the tensors, whatever the parts were in which they were written.

    Args:
        tensors: by key, as DTensors, which are overwritten.
        folder: a sharded checkpoint.
    """
    dcp.load(tensors, checkpoint_id=folder)


def read_whole(folder: Path, weights_only: bool = True) -> dict[str, Any]:
    """Read a folder as if it were a checkpoint file, with whole tensors, in a single process.

    Raises:
        CheckpointError: the folder is damaged, or what is in it does not belong together.
    """
    checkpoint = read_content(folder, weights_only)
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        key: torch.empty(stored.size, dtype=stored.properties.dtype)
        for key, stored in metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    parts = checkpoint.pop(SHARDED)
    shapes: dict[str, list[int]] = parts["shapes"]
    missing = [name for name in shapes if key_of_weight(name) not in tensors]
    if missing:
        raise CheckpointError(f"{folder} lacks the parameters {', '.join(missing[:5])}.")
    for name, same_as in parts["names"].items():
        checkpoint["state_dict"][name] = tensors[key_of_weight(same_as)].view(shapes[same_as])
    for state, names in zip(checkpoint.get("optimizer_states", ()), parts["optimizers"], strict=True):
        for number, name in enumerate(names):
            for kind in parts["kinds"]:
                if (key := key_of_state(kind, name)) in tensors:
                    state["state"].setdefault(number, {})[kind] = tensors[key].view(shapes[name])
    return checkpoint
