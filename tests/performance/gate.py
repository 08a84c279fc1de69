"""Stop a contender between chunks of steps, and measure each chunk.

This runs inside the contender's process, at the one place that all contenders share and none treats specially: where
the loader fetches a batch. Between two fetches lies exactly one step, whatever the loop does around it, and neither
hooks nor callbacks are needed, which would change the loop.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

import torch
import torch.distributed as dist

# What a process group offers under torch 2.4 to 2.13.
_COLLECTIVES = (
    "_allgather_base",
    "_reduce_scatter_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
)


# Lightning's functions in which workers agree whether to stop: for a signal at every step, for early stopping later.
_VOTES = {"_broadcast_sigterm_tensor", "reduce_boolean_decision"}


class CollectiveCounter:
    """Counts the collective operations that this process calls from Python.

    The methods of process groups are wrapped, not the functions of `torch.distributed` on top of them: whoever has
    imported one of those by name would go unseen. DDP's exchange of gradients runs in C++ and is not counted.

    Attributes:
        votes: operations in which workers agree whether to stop.
        others: all others. Nothing else is sorted out, so in a run that only trains and logs they are for the logging.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.votes = self.others = 0

    def install(self) -> None:
        """Wrap the methods, for the rest of this process."""
        for name in _COLLECTIVES:
            if hasattr(dist.ProcessGroup, name):
                setattr(dist.ProcessGroup, name, self._counting(getattr(dist.ProcessGroup, name)))

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if _VOTES & set(_callers()):
                self.votes += 1
            else:
                self.others += 1
            return method(*args, **kwargs)

        return counted


def _callers() -> Iterator[str]:
    """Yield the names of the functions that are running, from the inside out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


class Gate:
    """Lets a chunk of steps through whenever the benchmark says so, and reports what it took.

    The benchmark listens at a Unix socket. Every report is a line of JSON, and is answered by an empty line when the
    next chunk may start; until then the contender blocks, and costs the others nothing. Among several workers only
    rank 0 stops: the others wait for it in their next collective operation.

    Args:
        address: path of the socket.
        steps: length of a chunk. The first one warms up and is not reported.
        chunks: number of chunks to report.
        count_collectives: whether to count them; the wrappers cost time.
    """

    def __init__(self, address: str, steps: int, chunks: int, count_collectives: bool = False) -> None:
        self.address = address
        self.steps = steps
        self.chunks = chunks
        self.count_collectives = count_collectives
        self._counter = CollectiveCounter()
        self._fetched = 0
        self._reported = -1  # the first report says that the contender has warmed up
        self._stream: TextIO | None = None
        self._cpu = self._wall = 0.0

    @property
    def items(self) -> int:
        """Number of batches that have to be fetched to pass all chunks, and to report the last one."""
        return (1 + self.chunks) * self.steps + 1

    def fetch(self) -> None:
        """Count one fetched batch; stop at the end of a chunk."""
        if self._fetched and self._fetched % self.steps == 0 and self._reported < self.chunks:
            self._stop()
        self._fetched += 1

    def _stop(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        if dist.is_initialized() and dist.get_rank() != 0:
            self._reported = self.chunks
            return
        if self._stream is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.address)
            self._stream = connection.makefile("rw")
            if self.count_collectives:
                self._counter.install()
            report: dict[str, float] = {"threads": torch.get_num_threads()}
        else:
            report = {
                "cpu": (cpu - self._cpu) / self.steps,
                "wall": (wall - self._wall) / self.steps,
                "collectives": self._counter.others,
                "votes": self._counter.votes,
            }
        self._stream.write(json.dumps(report) + "\n")
        self._stream.flush()
        if not self._stream.readline():
            raise SystemExit("the benchmark has ended")
        self._reported += 1
        self._counter.reset()
        # The CPU clock is that of the process: gradients of DDP and progress bars may be handled by other threads.
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a worker process without the connection."""
        return {**self.__dict__, "_stream": None}
