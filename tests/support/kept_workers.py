"""Ray workers that many fits share, as those of a search's trials do: a worker imports for seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest


@contextmanager
def kept_workers(number: int = 2) -> Iterator[None]:
    """Let fits under the strategies of Ray leave their workers to the next one, as in a trial with a pool.

    Args:
        number: of workers.
    """
    import ray

    from itwinai.launchers.ray import RayLauncher
    from itwinai.launchers.ray_worker_pool import RayWorkerPool

    groups = import_module("ray.util.placement_group")  # as an attribute, it is the function of that name
    group = groups.placement_group([{"CPU": 1}] * number)
    ray.get(group.ready())
    pool = RayWorkerPool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayLauncher, "pool", pool)
        patch.setattr(groups, "get_current_placement_group", lambda: group)
        yield
    pool.close()
    groups.remove_placement_group(group)
