"""How much of the communication passes beside computation, from events whose answer is known."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from itwinai.profiling.chrome_trace import Event, EventKind
from itwinai.profiling.communication import CommunicationTime, common, communication_time, length, union, without
from tests.conftest import REPOSITORY

ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def test_spans_that_overlap_or_touch_are_one() -> None:
    assert union([(5, 6), (0, 2), (1, 3), (3, 4), (0, 1)]) == [(0, 4), (5, 6)]
    assert union([]) == []
    assert common([(0, 4), (5, 9)], [(1, 2), (3, 6), (8, 10)]) == [(1, 2), (3, 4), (5, 6), (8, 9)]
    assert without([(0, 4), (5, 9)], [(1, 2), (3, 6), (8, 10)]) == [(0, 1), (2, 3), (6, 8)]
    assert length([(0, 4), (5, 9)]) == 8


@pytest.mark.parametrize("seed", range(20))
def test_arithmetic_of_spans_is_that_of_sets(seed: int) -> None:
    """A span from 2 to 5 is the set of 2, 3 and 4."""
    chance = random.Random(seed)

    def spans() -> list[tuple[float, float]]:
        starts = [chance.randrange(60) for _ in range(chance.randrange(8))]
        return [(start, start + chance.randrange(1, 12)) for start in starts]

    def points(of: list[tuple[float, float]]) -> set[int]:
        return {point for start, end in of for point in range(int(start), int(end))}

    first, second = spans(), spans()
    assert points(union(first)) == points(first) and length(union(first)) == len(points(first))
    assert points(common(union(first), union(second))) == points(first) & points(second)
    assert points(without(union(first), union(second))) == points(first) - points(second)


def test_kernels_of_collectives_beside_other_kernels() -> None:
    """Two operations of 100 and 50 us; 40 us of the first and 10 us of the second beside other kernels."""
    events = [
        Event(ALL_REDUCE, EventKind.DEVICE, 0, 100, thread=20),
        Event("ncclSymkDevKernel_AllGather_LL", EventKind.DEVICE, 200, 250, thread=20),
        Event("ampere_sgemm_128x64_nn", EventKind.DEVICE, 10, 40, thread=7),
        Event("vectorized_elementwise_kernel", EventKind.DEVICE, 30, 50, thread=8),
        Event("vectorized_elementwise_kernel", EventKind.DEVICE, 240, 300, thread=7),
        Event("Memcpy HtoD (Pinned -> Device)", EventKind.DEVICE, 60, 90, thread=9),  # a copy is no computation
        Event("ProfilerStep#3", EventKind.DEVICE_RANGE, 0, 300, thread=7),  # nor is what spans a step
        Event("nccl:all_reduce", EventKind.DEVICE_RANGE, 0, 100, thread=20),
        Event("aten::mm", EventKind.HOST, 0, 300, thread=1),  # the host does other things at that time
    ]
    time, missing = communication_time(events)
    assert time == CommunicationTime(150, 50) and time.exposed_us == 100
    assert missing == ""


def test_operations_of_gloo_beside_operators() -> None:
    """gloo's threads record the operations; the launches, and the wrappers around everything, are no computation."""
    events = [
        Event("gloo:all_reduce", EventKind.RANGE, 100, 200, thread=50),
        Event("gloo:all_reduce", EventKind.RANGE, 150, 250, thread=51),
        Event("ProfilerStep#3", EventKind.RANGE, 0, 300, thread=1),
        Event("autograd::engine::evaluate_function: AddmmBackward0", EventKind.HOST, 0, 300, thread=1),
        Event("aten::mm", EventKind.HOST, 90, 130, thread=1),
        Event("aten::mul", EventKind.HOST, 100, 110, thread=1),
        Event("aten::add", EventKind.HOST, 160, 220, thread=1),
        Event("c10d::allreduce_", EventKind.HOST, 170, 200, thread=1),
    ]
    time, _ = communication_time(events)
    assert time == CommunicationTime(150, 30 + 60 - 30)


def test_what_cannot_be_known_is_not_nought() -> None:
    computing = Event("aten::mm", EventKind.HOST, 0, 10)
    assert communication_time([computing]) == (None, "the recorded steps show no collective operation")
    time, missing = communication_time([computing, Event("c10d::allreduce_", EventKind.HOST, 1, 2)])
    assert time is None and "c10d::allreduce_" in missing


WORKER = """
import json, os, sys, time
import torch, torch.distributed as dist
from torch import nn
from itwinai.profiling.torch_profiler import OperatorProfile, Windows
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2] + "/store", 2), rank=rank, world_size=2)
model = nn.parallel.DistributedDataParallel(nn.Linear(64, 64))
profile = OperatorProfile(sys.argv[2], rank, Windows(wait=0, warmup=1, active=2))
profile.start()
for _ in range(3):
    if rank == 1:
        time.sleep(0.5)  # the slower worker, for which the other one waits
    model(torch.ones(8, 64)).sum().backward()
    profile.step()
profile.stop()
time = profile.communication
print(json.dumps([time.total_us, time.exposed_us, [trace.name for trace in profile.traces], profile.missing]))
dist.destroy_process_group()
"""


def test_worker_that_waits_for_a_slower_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY)
        for rank in range(2)
    ]
    waiting, slow = (json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers)
    assert waiting[0] > 250_000 and waiting[1] > 250_000  # nothing to do beside it
    assert slow[0] < waiting[0]
    assert [waiting[2], slow[2]] == [["rank-0.1.pt.trace.json.gz"], ["rank-1.1.pt.trace.json.gz"]]
    assert waiting[3] == slow[3] == []
