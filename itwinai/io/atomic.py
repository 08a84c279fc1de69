"""Files that are written whole or not at all: beside their place, and then moved there."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from pathlib import Path, PurePath

PART = ".part-"
"""Name that files and folders begin with while they are written; a reader passes over them."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it holds what it held or what is new, whenever the process is killed.

    Args:
        path: of the file; its folder is created if it does not exist.
        content: a text is written as UTF-8.

    Raises:
        OSError: it could not be written; the old file is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(part_name(path.name))
    try:
        beside.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def part_name(name: str) -> str:
    """Return a name for a file or folder while it is written, which says to `remove_parts` by whom."""
    return f"{PART}{name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def remove_parts(folder: str | PurePath) -> None:
    """Remove what writers of this machine that were killed have left in a local folder."""
    for left in Path(folder).glob(f"{PART}*"):
        host, pid, _ = [*left.name.rsplit(".", 3)[1:], "", "", ""][:3]
        if host == _host() and pid.isdecimal() and not _is_alive(int(pid)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _host() -> str:
    """Return the name of this machine as one word of a name whose words have dots between."""
    return socket.gethostname().replace(".", "-")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended, and its parent has not asked how: in containers often none ever does."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # another system, or the process is gone
        return False
    return status.rpartition(")")[2].split()[0] == "Z"
