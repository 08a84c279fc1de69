"""Load Horovod in a fresh process, to see whether it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from itwinai.errors import InstallError

_PROBE = """
import json
import horovod
import horovod.torch as hvd
names = ("gloo", "mpi", "nccl", "ccl", "ddl", "cuda", "rocm")
built = [name for name in names if getattr(hvd, name + "_built")()]
print(json.dumps({"version": horovod.__version__, "file": hvd.__file__, "backends": built}))
"""


@dataclass(frozen=True)
class Loaded:
    """What a fresh Python process saw when it loaded Horovod."""

    version: str
    file: Path
    backends: tuple[str, ...]


def verify_wheel(wheel: Path) -> Loaded:
    """Load a wheel before it is installed, so that a broken one never replaces a working Horovod.

    Args:
        wheel: the wheel file.

    Returns:
        What was loaded.

    Raises:
        InstallError: the file is damaged or does not load here.
    """
    with tempfile.TemporaryDirectory(prefix="itwinai-wheel-") as name:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(name)
        except (zipfile.BadZipFile, OSError) as error:
            raise InstallError(f"{wheel} is damaged: {error}") from error
        loaded = load_horovod(Path(name))
        if not loaded.file.is_relative_to(Path(name).resolve()) and not loaded.file.is_relative_to(name):
            raise InstallError(f"{wheel} holds no Horovod for torch: {loaded.file} was loaded instead.")
        return loaded


def load_horovod(extra_path: Path | None = None) -> Loaded:
    """Load Horovod in a fresh process, away from the current directory.

    Args:
        extra_path: a folder that goes before the installed packages.

    Returns:
        What was loaded.

    Raises:
        InstallError: it does not load, or has neither Gloo nor MPI.
    """
    env = dict(os.environ)
    if extra_path:
        parts = (str(extra_path), env.get("PYTHONPATH", ""))
        env["PYTHONPATH"] = os.pathsep.join(part for part in parts if part)
    command = [sys.executable, "-c", _PROBE]
    with tempfile.TemporaryDirectory(prefix="itwinai-load-") as elsewhere:
        done = subprocess.run(command, env=env, cwd=elsewhere, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise InstallError(f"Horovod does not load: {reason[:300]}")
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    backends = tuple(seen["backends"])
    if not {"gloo", "mpi"} & set(backends):
        raise InstallError(f"Horovod at {seen['file']} was built with neither Gloo nor MPI.")
    return Loaded(seen["version"], Path(seen["file"]), backends)
