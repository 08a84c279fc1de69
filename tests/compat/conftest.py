"""What several of these tests set up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist


@pytest.fixture
def process_group() -> Iterator[None]:
    """Let torch.distributed have a default group, with this process alone in it."""
    store = dist.TCPStore("localhost", 0, 1, is_master=True, timeout=timedelta(seconds=10))
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
