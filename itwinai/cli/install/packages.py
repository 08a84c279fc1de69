"""pip, and the Python packages that it installs for Horovod."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import invalidate_caches, metadata
from importlib.util import find_spec

from itwinai.cli.install.check import Check
from itwinai.errors import InstallError

# setup.py's own list plus what turns it into a wheel; without build isolation pip does not fetch them.
PYTHON_REQUIREMENTS = ("setuptools", "wheel", "cffi", "cloudpickle", "psutil", "pyyaml", "packaging")


def check_pip() -> Check:
    """Check that this Python has pip, which environments made by other tools may lack."""
    found = "importable" if find_spec("pip") else None
    return Check("pip", found, f"not in {sys.prefix}", f"{sys.executable} -m ensurepip")


def check_python_packages() -> list[Check]:
    """Check for the Python packages that Horovod's setup.py and Horovod itself import."""
    checks = []
    for name in PYTHON_REQUIREMENTS:
        try:
            found: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        checks.append(Check(f"Python package {name}", found, "not installed", f"pip install {name}", name))
    return checks


def install_python_packages(checks: Sequence[Check]) -> None:
    """Let pip install the missing Python packages among the checks, saying so.

    Args:
        checks: the results of the checks.

    Raises:
        InstallError: pip could not install them.
    """
    names = [check.pip_name for check in checks if check.found is None and check.pip_name]
    if names:
        print(f"Installing with pip, for Horovod: {', '.join(names)}", flush=True)
        pip_install(names)


def pip_install(arguments: Sequence[str]) -> None:
    """Run ``pip install`` for this interpreter.

    Args:
        arguments: what follows ``pip install``.

    Raises:
        InstallError: pip failed; the message ends with its last lines.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    invalidate_caches()
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-8:])
        raise InstallError(f"'{shlex.join(['pip', *command[3:]])}' failed:\n{tail}")
