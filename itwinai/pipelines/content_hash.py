"""Digests of the content of files and folders, which are not read again while nothing of them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from itwinai.io.atomic import PART, write_whole

ABSENT = "absent"
"""Digest of a path at which there is nothing."""

_RECENT = 2.0
"""Seconds: a file changed so short a time ago may change again without another time, which some file systems round."""

_LEFT_OUT = ("__pycache__",)


class ContentHasher:
    """Digests of files, folders and texts.

    A digest is kept with size, inode, and the times of change of content and of inode of its file. No program can set
    the last of these: a file whose time was set back is read again.

    Args:
        cache: file for the digests; None to keep none beyond this object.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, list[object]] = {}
        self._is_new = False
        self.read = 0  # files that were read
        if cache is not None:
            # A damaged cache is one more reading of the files.
            with contextlib.suppress(OSError, ValueError):
                self._known = json.loads(cache.read_text(encoding="utf-8"))

    def digest(self, path: Path, leave_out: str = "") -> str:
        """Return the digest of what is at a path: of the content of a file, or of names and contents of a folder.

        Args:
            path: of the file or folder; links are followed.
            leave_out: name of a file of the folder that does not count.
        """
        if path.is_dir():
            whole = hashlib.blake2b(digest_size=16)
            for name, file in _files(path):
                if name != leave_out:
                    whole.update(f"{name}\0{self._file(file)}\0".encode("utf-8", "surrogateescape"))
            return whole.hexdigest()
        return self._file(path)

    def save(self) -> None:
        """Write the digests for the next time."""
        if self._cache is not None and self._is_new:
            self._is_new = False
            write_whole(self._cache, json.dumps(self._known))

    def _file(self, path: Path) -> str:
        key = os.path.abspath(path)
        try:
            status = os.stat(path)
            stamp = [status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns, status.st_ctime_ns]
            known = self._known.get(key)
            if known is not None and known[1:] == stamp:
                return str(known[0])
            found = _digest_of_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT
        self.read += 1
        if time.time() - max(status.st_mtime, status.st_ctime) > _RECENT:
            self._known[key] = [found, *stamp]
            self._is_new = True
        return found


def digest_of(text: str) -> str:
    """Return the digest of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _digest_of_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield all files below a folder with their names in it, in the order of the names; folders that link back once."""
    found: list[tuple[str, Path]] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(PART)]
        inside = os.path.relpath(place, folder)
        for name in names:
            if not name.startswith(PART):
                found.append((os.path.normpath(os.path.join(inside, name)), Path(place, name)))
    yield from sorted(found)
