"""A check of one thing that the build needs, and what the checks have in common."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing the build needs: where it was found, or how to get it."""

    name: str
    found: str | None
    problem: str = ""
    fix: str = ""
    pip_name: str | None = None  # a plain Python package, which this command installs itself


def missing_report(missing: Sequence[Check]) -> str:
    """Return the message that lists all that is missing, each with its install line."""
    lines = [f"  - {check.name}: {check.problem}\n      {check.fix}" for check in missing]
    return "\n".join(["Horovod cannot be built here; this is missing:", *lines])


def build_path(env: Mapping[str, str]) -> str:
    """Return PATH with this interpreter's programs first, so that its cmake wins over an old system one."""
    return os.pathsep.join(part for part in (sysconfig.get_path("scripts"), env.get("PATH", "")) if part)


def find_program(env: Mapping[str, str], *names: str) -> str | None:
    """Return the first of some programs that is on PATH."""
    return next((found for name in names if (found := shutil.which(name, path=env.get("PATH", "")))), None)


def run_briefly(command: Sequence[str], path: str, stdin: str = "") -> tuple[int, str]:
    """Run a short command and return its exit code with all it printed."""
    env = {**os.environ, "PATH": path, "LC_ALL": "C"}
    pipe, merge = subprocess.PIPE, subprocess.STDOUT
    try:
        done = subprocess.run(command, input=stdin, env=env, stdout=pipe, stderr=merge, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout
