"""Which code a run ran, as git knows it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from itwinai.run_info.redaction import without_secrets

_TIMEOUT = 10.0  # seconds; a repository on a slow file system


@dataclass(frozen=True)
class Code:
    """The state of a git repository.

    Attributes:
        commit: the whole hash; empty before the first commit.
        branch: empty where none is checked out.
        dirty: whether files that git tracks differ from the commit.
        remote: address of ``origin``, without secrets; empty where there is none.
        root: the repository's folder.
    """

    commit: str
    branch: str
    dirty: bool
    remote: str
    root: str


def code_in(folder: Path) -> Code | None:
    """Return the state of the repository that a folder is in; None without one, or without git."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Code(
        commit=_git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or "",
        branch=_git(folder, "symbolic-ref", "--short", "--quiet", "HEAD") or "",
        dirty=bool(status),
        remote=without_secrets(_git(folder, "config", "--get", "remote.origin.url") or ""),
        root=root,
    )


def folder_of_run() -> Path:
    """Return the folder of the user's script, or of a command and of a notebook the working folder."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0].endswith(".py") else None
    return script.resolve().parent if script is not None and script.is_file() else Path.cwd()


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it fails or is not there."""
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
