"""Private names of Ray. Ray is imported when used."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tune_storage() -> str | None:
    """Return the folder, or its URL, that Ray Tune keeps the trial in whose function runs in this process.

    Returns:
        The folder; None if this is not a trial that is a function.
    """
    from ray.train._internal.session import get_session

    session = get_session()
    if session is None or session.world_rank is not None or session.storage is None:  # Ray Train has ranks
        return None
    kind, path = session.storage.storage_filesystem.type_name, session.storage.trial_fs_path
    return path if kind == "local" else f"{'gs' if kind == 'gcs' else kind}://{path}"


def print_rank_0_plainly() -> None:
    """Let Ray print what the worker of rank 0 prints as it is; the lines of others keep their prefix.

    It lasts until ``ray.shutdown``; further calls change nothing.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    for name, print_lines in dispatcher.handlers:
        if name != "ray_print_logs" or not isinstance(print_lines, functools.partial):  # ours is none
            continue

        def print_plainly(data: dict[str, Any], print_lines: Callable[[Any], None] = print_lines) -> None:
            if data.get("actor_name") != "rank 0":
                print_lines(data)
                return
            print(*data["lines"], sep="\n", file=sys.stderr if data["is_err"] else sys.stdout, flush=True)

        dispatcher.remove_handler(name)
        dispatcher.add_handler(name, print_plainly)


def forget_ray_cluster(address: str) -> None:
    """Remove the note in which `ray start` stores the address of a cluster for calls without an address.

    Ray itself takes it back with `ray stop`, which ends all clusters of this machine, and not when it is ended by a
    signal. Then every connection without an address fails.
    """
    from ray._private import utils

    if utils.read_ray_address() == address:
        Path(utils.get_ray_address_file(None)).unlink(missing_ok=True)
