"""The folder of a plan, which keeps its finished wheel."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itwinai.cli.install.plan import Plan
from itwinai.errors import InstallError


def cached_wheel(plan: Plan) -> Path | None:
    """Return the finished wheel of this plan, if there is one."""
    return next(iter(sorted(plan.folder.glob("horovod-*.whl"))), None)


def store_wheel(built: Path, plan: Plan) -> Path:
    """Put a wheel into the cache in one step, so that readers see it whole or not at all.

    Args:
        built: the wheel where it was built.
        plan: what it was built for.

    Returns:
        The wheel in the cache.

    Raises:
        InstallError: it cannot be written there.
    """
    target = plan.folder / built.name
    part = plan.folder / f".{built.name}.{os.getpid()}.part"
    try:
        shutil.copyfile(built, part)
        os.replace(part, target)
    except OSError as error:
        raise InstallError(f"The wheel cannot be written to {plan.folder}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


@contextmanager
def one_at_a_time(plan: Plan) -> Iterator[None]:
    """Let one process at a time build a plan: several tasks of a job may run this command at once."""
    with (plan.folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another process is building this wheel; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            # some network file systems have no locks: two builds are slower, not wrong
            print(f"No lock in {plan.folder} ({error.strerror}); continuing without.", flush=True)
        yield
