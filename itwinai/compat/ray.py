"""Private names of Ray. Ray is imported when used."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def starting_quickly() -> Iterator[None]:
    """Start Ray on this machine, in ``ray.init``, without two waits that take half of its time.

    Ray starts the server of its dashboard also when no dashboard is asked for, for usage statistics alone, and waits
    until it serves. And it looks once a second whether the node has registered. A Ray that has other names for these
    starts as it always does.
    """
    from ray._private import node, services

    start_api_server = getattr(node.Node, "start_api_server", None)
    get_node = getattr(services, "get_node", None)
    if start_api_server is None or get_node is None:
        yield
        return

    def start_server_if_asked(self: Any, *, include_dashboard: bool | None, **options: Any) -> None:
        if include_dashboard is not False:
            start_api_server(self, include_dashboard=include_dashboard, **options)

    def get_node_soon(gcs_address: str, node_id: str) -> Any:
        _wait_for_node(gcs_address, node_id)
        return get_node(gcs_address, node_id)

    with (
        _replaced(node.Node, "start_api_server", start_server_if_asked),
        _replaced(services, "get_node", get_node_soon),
    ):
        yield


def _wait_for_node(gcs_address: str, node_id: str, timeout: float = 30.0) -> None:
    """Wait until a node has registered; what comes after the timeout is Ray's own to say."""
    deadline = time.monotonic() + timeout
    with suppress(Exception):  # of Ray's own kinds, by version; whatever is wrong, Ray looks itself afterwards
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        client = GcsClient(gcs_address)
        while time.monotonic() < deadline and all(known.hex() != node_id for known in client.get_all_node_info()):
            time.sleep(0.02)


@contextmanager
def without_counting_callbacks() -> Iterator[None]:
    """Let ``tune.run`` not count its callbacks by class for Ray's usage statistics.

    To tell which are Ray's own it imports MLflow and W&B, which takes seconds.
    """
    from ray.air._internal import usage

    if not hasattr(usage, "tag_callbacks"):
        yield
        return
    with _replaced(usage, "tag_callbacks", lambda callbacks: False):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give another value to an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
