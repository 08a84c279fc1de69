"""One checkpoint file: written whole or not at all, with a manifest by which damage is found.

The file is what ``torch.save`` writes, a zip archive, so that everything that reads checkpoints reads it as it is. The
manifest is the archive's comment, at the end of the file::

    archive ... end record | MAGIC | SHA-256 of end record and manifest | manifest, as JSON

It holds the SHA-256 of everything before the end record. The archive is hashed while it is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import IO, Any

import fsspec
import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from itwinai.errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError
from itwinai.io.atomic import part_name

FORMAT = 1
"""Version of the format: of the manifest, and of what `itwinai.checkpoints.state` puts beside Lightning's content."""

_MAGIC = b"itwinai checkpoint\n"
_END = struct.Struct("<4s4H2LH")  # zip's end record; its last field is the length of the comment
_END_SIGNATURE = b"PK\x05\x06"
_LONGEST_COMMENT = 0xFFFF


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without loading it.

    Attributes:
        format: version of the format.
        sha256: of the archive but for its end record.
        size: of the same, in bytes.
        written_at: seconds since 1970.
        about: who wrote it and what is in it: see `itwinai.checkpoints.state.describe`.
    """

    format: int
    sha256: str
    size: int
    written_at: float
    about: dict[str, Any]


class _Archive(io.RawIOBase):
    """Hands on what is written, and hashes all but the archive's end record."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size = 0
        self.tail = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= _END.size:
            self._pass_on(self.tail)
            self._pass_on(view[: -_END.size])
            self.tail = bytes(view[-_END.size :])
        else:
            joined = self.tail + bytes(view)
            self._pass_on(joined[: -_END.size])
            self.tail = joined[-_END.size :]
        return len(view)

    def finish(self, comment_of: Callable[[int, str, bytes], bytes]) -> None:
        """Write the end record with a comment, which is made from the archive's size, its hash and the end record."""
        fields = _END.unpack(self.tail)
        if fields[0] != _END_SIGNATURE or fields[-1] != 0:
            raise CheckpointError("torch.save has written an archive without the usual end; no manifest can be added.")
        comment = comment_of(self.size, self.hash.hexdigest(), self.tail)
        self.file.write(_END.pack(*fields[:-1], len(comment)))
        self.file.write(comment)

    def _pass_on(self, data: Any) -> None:
        if len(data):
            self.file.write(data)
            self.hash.update(data)
            self.size += len(data)


def write(content: Mapping[str, Any], path: str | PurePath, about: Mapping[str, Any], written_at: float) -> None:
    """Write a checkpoint so that the file appears whole and verified, or not at all.

    It is written beside its place, flushed to the disk, read back, and renamed. A file of the same name stays valid
    until then. On remote storage the last step is what the storage offers.

    Args:
        content: what ``torch.save`` can save.
        path: of the file, or a URL that fsspec knows.
        about: for the manifest; plain values.
        written_at: for the manifest; seconds since 1970.

    Raises:
        OSError: the file could not be written; nothing is left of it.
        CheckpointError: what was written is not what can be read.
    """
    filesystem, place = url_to_fs(str(path))
    local = isinstance(filesystem, LocalFileSystem)
    folder, _, name = place.rpartition("/")
    if folder:
        filesystem.makedirs(folder, exist_ok=True)
    beside = f"{folder}/{part_name(name)}" if folder else part_name(name)
    try:
        with filesystem.open(beside, "wb") as file:
            archive = _Archive(file)
            torch.save(dict(content), archive)  # type: ignore[arg-type]
            archive.finish(
                lambda size, digest, end: _comment(Manifest(FORMAT, digest, size, written_at, dict(about)), end)
            )
            if local:
                file.flush()
                os.fsync(file.fileno())
        verify(beside if local else filesystem.unstrip_protocol(beside))
        if local:
            os.replace(beside, place)
            _flush_folder(folder or ".")
        else:
            filesystem.mv(beside, place)
    except BaseException:
        if filesystem.exists(beside):
            filesystem.rm_file(beside)
        raise


def _comment(manifest: Manifest, end: bytes) -> bytes:
    text = json.dumps(asdict(manifest), separators=(",", ":")).encode()
    length = len(_MAGIC) + 65 + len(text)
    if length > _LONGEST_COMMENT:
        raise CheckpointError(f"The manifest is {length} bytes long; {_LONGEST_COMMENT} is the most that fits.")
    end = _END.pack(*_END.unpack(end)[:-1], length)
    return _MAGIC + hashlib.sha256(end + text).hexdigest().encode() + b"\n" + text


def _flush_folder(folder: str) -> None:
    """Flush the rename itself to the disk, where the system allows that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor on all network file systems
        pass
    finally:
        os.close(descriptor)


def read_manifest(path: str | PurePath) -> Manifest | None:
    """Read the manifest of a checkpoint.

    Args:
        path: of the file.

    Returns:
        The manifest; None if the file has none, as those that others than itwinai write.

    Raises:
        DamagedCheckpointError: the file is empty or cut off, its manifest is damaged, or it is not a checkpoint.
        CheckpointError: another version of itwinai has written it in a format that this one does not know.
        FileNotFoundError: there is no such file.
    """
    with fsspec.open(str(path), "rb") as file:
        return _manifest(file, str(path))


def _manifest(file: IO[bytes], path: str) -> Manifest | None:
    total = file.seek(0, os.SEEK_END)
    if total == 0:
        raise DamagedCheckpointError(path, "it is empty")
    file.seek(max(0, total - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    start = tail.rfind(_END_SIGNATURE + b"\0\0\0\0")
    if start < 0:
        file.seek(0)
        if file.read(4) == b"PK\x03\x04":
            raise DamagedCheckpointError(path, "its end is missing")
        raise DamagedCheckpointError(path, "it is not a file that torch.save has written")
    end, comment = tail[start : start + _END.size], tail[start + _END.size :]
    if len(end) < _END.size or _END.unpack(end)[-1] != len(comment):
        raise DamagedCheckpointError(path, "its end is cut off")
    if not comment:
        return None
    magic, digest, text = comment[: len(_MAGIC)], comment[len(_MAGIC) : len(_MAGIC) + 64], comment[len(_MAGIC) + 65 :]
    if magic != _MAGIC or hashlib.sha256(end + text).hexdigest().encode() != digest:
        raise DamagedCheckpointError(path, "its manifest is damaged")
    fields = json.loads(text)
    if fields["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {fields['format']} of itwinai's checkpoints, and this version reads format {FORMAT}. "
            f"It was written by itwinai {fields['about'].get('versions', {}).get('itwinai', '?')}: use that version."
        )
    if fields["size"] != total - len(end) - len(comment):
        raise DamagedCheckpointError(path, f"it has {total - len(end) - len(comment)} bytes, not {fields['size']}")
    return Manifest(**fields)


def verify(path: str | PurePath) -> Manifest | None:
    """Read a whole checkpoint and compare it with its manifest.

    Args:
        path: of the file.

    Returns:
        The manifest; None if the file has none, and only the checksums of its archive could be compared.

    Raises:
        DamagedCheckpointError: the file is damaged.
        CheckpointError: it has another version of the format.
        FileNotFoundError: there is no such file.
    """
    with fsspec.open(str(path), "rb") as file:
        manifest = _manifest(file, str(path))
        file.seek(0)
        if manifest is None:
            try:
                damaged = zipfile.ZipFile(file).testzip()
            except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
                raise DamagedCheckpointError(str(path), str(error)) from error
            if damaged is not None:
                raise DamagedCheckpointError(str(path), f"the checksum of its record {damaged} is wrong")
            return None
        digest = hashlib.sha256()
        left = manifest.size
        while left and (block := file.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
        if left or digest.hexdigest() != manifest.sha256:
            raise DamagedCheckpointError(str(path), "its content does not have the checksum of its manifest")
        return manifest


def read(path: str | PurePath, weights_only: bool = True) -> dict[str, Any]:
    """Verify a checkpoint, and load it into the memory of the CPU.

    Args:
        path: of the file.
        weights_only: load nothing but tensors and plain values. Off, the file may execute any code.

    Raises:
        DamagedCheckpointError: the file is damaged.
        UnsafeCheckpointError: it holds something else than tensors and plain values.
        CheckpointError: it has another version of the format, or it is not a checkpoint.
        FileNotFoundError: there is no such file.
    """
    verify(path)
    with fsspec.open(str(path), "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=weights_only)
        except pickle.UnpicklingError as error:
            if not weights_only:
                raise DamagedCheckpointError(str(path), str(error)) from error
            raise UnsafeCheckpointError(str(path), unsafe_types(path)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, and not the dictionary of a checkpoint.")
    return content


def read_weights(path: str | PurePath) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint that is verified; nothing if it holds objects that are not safe to load.

    Those of a local file are read as they are used.

    Args:
        path: of the file.
    """
    filesystem, place = url_to_fs(str(path))
    try:
        if isinstance(filesystem, LocalFileSystem):
            content = torch.load(place, map_location="cpu", weights_only=True, mmap=True)
        else:
            with filesystem.open(place, "rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return {}
    weights = content.get("state_dict", {}) if isinstance(content, dict) else {}
    return {name: value for name, value in weights.items() if torch.is_tensor(value)}


def unsafe_types(path: str | PurePath) -> list[str]:
    """Return the names of all that loading a checkpoint without `weights_only` would import."""
    with fsspec.open(str(path), "rb") as file:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
