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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from itwinai.checkpoints import portable_file
from itwinai.checkpoints import state as checkpoint_state
from itwinai.checkpoints.naming import CONTENT
from itwinai.checkpoints.portable_file import Manifest
from itwinai.errors import CheckpointError, DamagedCheckpointError
from itwinai.io.atomic import PART, part_name

SHARDED = "sharded"
"""Key of what a file needs of its folder: the shapes of the parameters, and the optimizer's sharded states."""


_READ_AT_ONCE = 1 << 28
"""Bytes of parameters that are read before they are looked at."""


def is_sharded(path: str | PurePath) -> bool:
    """Return whether a path is the folder of a sharded checkpoint."""
    return (Path(path) / CONTENT).is_file()


def key_of_weight(name: str) -> str:
    """Return the key of a parameter."""
    return f"weights/{name}"


def key_of_state(kind: str, name: str) -> str:
    """Return the key of a state of the optimizer, as ``exp_avg``, that belongs to a parameter."""
    return f"optimizer/{kind}/{name}"


@dataclass(frozen=True)
class Part:
    """What a worker has of a flat tensor that is divided among the workers, in their order.

    Attributes:
        local: its values, without any that only fill up.
        size: number of values of the whole tensor.
    """

    local: Tensor
    size: int

    def divided(self, mesh: DeviceMesh) -> DTensor:
        """Return the tensor over all workers of a mesh."""
        shape = torch.Size([self.size])
        return DTensor.from_local(self.local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(1,))


def contents(parts: Mapping[str, Part], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a worker has to write, as plain values for a snapshot.

    Args:
        parts: by key.
        checkpoint: everything else; that of rank 0 counts.
    """
    return {
        "parts": {key: part.local for key, part in parts.items()},
        "sizes": {key: part.size for key, part in parts.items()},
        "checkpoint": dict(checkpoint),
    }


class ShardWriter:
    """Writes folders, each worker its own part; also in a thread, as it has a process group of its own.

    All workers have to make one together, and to write the same folders in the same order. Until it is closed, it
    cannot be pickled.

    Args:
        timeout: how long a worker waits for the others to have written their parts.
    """

    def __init__(self, timeout: timedelta) -> None:
        # By gloo, even if training uses NCCL: threads do not share a communicator of NCCL.
        self._group = dist.new_group(backend="gloo", timeout=timeout)

    def write(self, mine: dict[str, Any], path: str) -> None:
        """Write a folder; one of the same name stays valid until the new one is whole.

        Args:
            mine: see `contents`.
            path: of the folder.

        Raises:
            CheckpointError: a worker could not write its part; this is raised by all of them.
        """
        folder, checkpoint = Path(path), mine["checkpoint"]
        is_first = dist.get_rank() == 0
        part: Path = self._together(lambda: _new_part(folder) if is_first else None)[0]
        try:
            self._write_part(mine, part)
            hashes = self._together(lambda: _hashes(part, f"__{dist.get_rank()}_"))
            self._together(lambda: _complete(part, folder, checkpoint, hashes) if is_first else None)
        except BaseException:
            if is_first:
                shutil.rmtree(part, ignore_errors=True)
            raise

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _write_part(self, mine: dict[str, Any], part: Path) -> None:
        device = next((local.device.type for local in mine["parts"].values()), "cpu")
        mesh = DeviceMesh.from_group(self._group, device)  # nothing is exchanged over it
        tensors = {key: Part(local, mine["sizes"][key]).divided(mesh) for key, local in mine["parts"].items()}
        # Not copied ahead of the writing: a thread would do that by the stream of the first GPU.
        writer = dcp.FileSystemWriter(part, per_thread_copy_ahead=0)
        try:
            dcp.save(tensors, storage_writer=writer, process_group=self._group)
        except CheckpointException as error:
            rank, (failure, _) = min(error.failures.items())
            if isinstance(failure, KeyboardInterrupt):
                raise failure from None
            raise CheckpointError(_failure_text(rank, failure)) from error

    def _together(self, action: Callable[[], Any]) -> list[Any]:
        """Do something on each worker, and return what came of it on all of them, by rank; one's failure is everyone's.

        Raises:
            CheckpointError: it has failed on a worker.
        """
        mine: tuple[Any, str]
        cause = None
        try:
            mine = action(), ""
        except Exception as error:  # all workers raise it, below
            cause, mine = error, (None, _failure_text(dist.get_rank(), error))
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, mine, group=self._group)
        if failed := next((failure for _, failure in results if failure), ""):
            raise CheckpointError(failed) from cause
        return [result for result, _ in results]


def _failure_text(rank: int, error: BaseException) -> str:
    return f"rank {rank}: {type(error).__name__}: {error}"


def _new_part(folder: Path) -> Path:
    part = folder.with_name(part_name(folder.name))
    part.mkdir(parents=True)
    return part


def _hashes(part: Path, prefix: str) -> dict[str, str]:
    return {path.name: _flushed_hash(path) for path in sorted(part.iterdir()) if path.name.startswith(prefix)}


def _complete(part: Path, folder: Path, checkpoint: Mapping[str, Any], hashes: list[dict[str, str]]) -> None:
    """Write everything else, and put the folder in its place."""
    files = {name: value for found in [*hashes, _hashes(part, ".metadata")] for name, value in found.items()}
    portable_file.write(
        checkpoint, part / CONTENT, {**checkpoint_state.describe(checkpoint), "files": files}, written_at=time.time()
    )
    _put_in_place(part, folder)


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
    manifest = portable_file.verify(folder / CONTENT)
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
    return portable_file.read_manifest(f"{path}/{CONTENT}" if is_sharded(path) else path)


def verify_any(path: str | PurePath) -> Manifest | None:
    """Verify a checkpoint that may be a file or a folder."""
    return verify(Path(path)) if is_sharded(path) else portable_file.verify(path)


def read_any(path: str | PurePath, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint that may be a file or a folder, with whole tensors."""
    return read_whole(Path(path), weights_only) if is_sharded(path) else portable_file.read(path, weights_only)


def read_content(folder: Path, weights_only: bool = True) -> dict[str, Any]:
    """Verify a folder, and read everything but the sharded tensors."""
    verify(folder)
    return portable_file.read(folder / CONTENT, weights_only)


def read_shards(tensors: dict[str, DTensor], folder: Path) -> None:
    """Read this worker's parts of the tensors, however they were divided when they were written.

    Args:
        tensors: by key, as DTensors, which are overwritten.
        folder: a sharded checkpoint.
    """
    dcp.load(tensors, checkpoint_id=folder)


def first_not_finite(folder: Path, parameters: Iterable[str]) -> str | None:
    """Return the name of a parameter that holds NaN or infinite values; None if there is none.

    Args:
        folder: a sharded checkpoint.
        parameters: names; those that it does not have are passed over. A few are read at a time: all may be too large.
    """
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    group: dict[str, Tensor] = {}
    size = 0
    waiting = [name for name in parameters if isinstance(stored.get(key_of_weight(name)), TensorStorageMetadata)]
    for number, name in enumerate(waiting, 1):
        one: Any = stored[key_of_weight(name)]
        tensor = group[key_of_weight(name)] = torch.empty(one.size, dtype=one.properties.dtype)
        size += tensor.nbytes
        if number == len(waiting) or size >= _READ_AT_ONCE:
            dcp.load(group, checkpoint_id=folder, no_dist=True)
            if bad := next((key for key, tensor in group.items() if not tensor.isfinite().all()), None):
                return bad.removeprefix(key_of_weight(""))
            group, size = {}, 0
    return None


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
