"""What the preflight looks at on each node: ``python -m itwinai.slurm.node_check REQUEST``, one task per node.

Each part is printed as soon as it is known, so that a node on which a later part hangs has told the earlier ones.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

MARK = "itwinai-preflight "
"""What a line begins with that holds a part of the answer, as JSON."""

_SIZES = {"cuda": 4096, "cpu": 512}  # of the matrices: 10 ms each
_REPEATS = 5
_MESSAGE = 4 << 20  # bytes, sent to each node and back


@dataclass(frozen=True)
class Request:
    """What a node is asked.

    Attributes:
        folder: that all nodes have to share.
        token: content of the file ``.itwinai-preflight`` there.
        address: of rank 0 in the run.
        port: of rank 0 in the run.
        limit: seconds for what may hang.
    """

    folder: str
    token: str
    address: str
    port: int
    limit: float

    @property
    def shared_file(self) -> Path:
        """The file that all nodes have to see."""
        return Path(self.folder, f".itwinai-preflight-{self.token}")

    def text(self) -> str:
        """Return it for a command line."""
        return json.dumps(asdict(self))


def check_node(request: Request, tell: Callable[[dict[str, Any]], None]) -> None:
    """Look at this node, and tell what it is like, part by part.

    Args:
        request: what is asked.
        tell: gets each part as it is known.
    """
    rank, nodes = int(os.environ.get("SLURM_NODEID", "0")), int(os.environ.get("SLURM_NNODES", "1"))
    tell({"time": time.time(), "host": socket.gethostname()})
    tell(_versions(request) | _shared_folder(request, rank))
    addresses = _addresses(request, rank)
    tell(addresses)
    import torch

    # Where SLURM does not hide the other GPUs of a node, torch sees those of other jobs too.
    has_gpus = any(name in os.environ for name in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))
    tell({"torch": torch.__version__, "gpus": torch.cuda.device_count() if has_gpus else 0})
    tell(_products(torch))
    if nodes > 1 and not addresses["address_problems"]:
        tell(_group(torch, request, rank, nodes))
    tell({"done": True})


def _versions(request: Request) -> dict[str, Any]:
    from itwinai.run_info.git import code_in

    code = code_in(Path(request.folder))
    return {
        "python": platform.python_version(),
        "itwinai": version("itwinai"),
        "commit": code.commit[:12] + ("+changes" if code.dirty else "") if code else "",
    }


def _shared_folder(request: Request, rank: int) -> dict[str, Any]:
    """Look for the file of the caller, and write one beside it."""
    seen = request.shared_file.exists()
    try:
        request.shared_file.with_name(f"{request.shared_file.name}-{rank}").write_text("")
        problem = ""
    except OSError as error:
        problem = f"{type(error).__name__}: {error.strerror or error}"
    return {"folder_seen": seen, "folder_problem": problem}


def _addresses(request: Request, rank: int) -> dict[str, Any]:
    """Look whether names resolve, interfaces are there, and rank 0's port is free."""
    from itwinai.errors import ItwinaiError
    from itwinai.launchers.reach import check_interface, resolved_address

    problems = []

    def note(check: Callable[[], object]) -> bool:
        try:
            check()
        except ItwinaiError as error:
            text, _, advice = str(error).partition(". ")
            problems.append((text[0].lower() + text[1:] if text.startswith("The ") else text, advice.rstrip(".")))
            return False
        return True

    if not note(lambda: resolved_address(request.address, request.port)):
        rank = -1  # its port cannot be looked at
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        note(partial(check_interface, variable))
    taken = ""
    if rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((request.address, request.port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    text = f"{request.address} is not an address of this node, where rank 0 runs"
                    problems.append((text, "Set MASTER_ADDR to one that is; `ip addr` lists them"))
                else:
                    taken = error.strerror or str(error)
    return {"address_problems": problems, "port_taken": taken}


def _products(torch: Any) -> dict[str, Any]:
    """Multiply matrices on each device; return the seconds of each, and which compute wrong numbers."""
    count = torch.cuda.device_count()
    devices = [f"cuda:{number}" for number in range(count)] or ["cpu"]
    seconds, wrong = {}, {}
    for device in devices:
        size = _SIZES[device.partition(":")[0]]
        try:
            # Row i holds i: the product has i * size in row i, exactly, in any order of adding.
            left = (torch.arange(size, device=device) % 64).float()[:, None].expand(size, size).contiguous()
            right = torch.ones(size, size, device=device)
            times = []
            for _ in range(_REPEATS):
                began = time.perf_counter()
                product = left @ right
                total = float(product[:, 0].sum())  # waits for the device
                times.append(time.perf_counter() - began)
            expected = float((torch.arange(size) % 64).sum()) * size
            if total != expected or not bool((product[:, :1] == product).all()):
                wrong[device] = f"computes a matrix product wrongly: {total:g} instead of {expected:g}"
            seconds[device] = min(times)
        except RuntimeError as error:
            wrong[device] = str(error).splitlines()[0]
    return {"seconds": seconds, "wrong": wrong}


def _group(torch: Any, request: Request, rank: int, nodes: int) -> dict[str, Any]:
    """Form a group of all nodes as the run will, add numbers up, and let rank 0 send data to each node and back."""
    import torch.distributed as dist

    from itwinai.errors import ItwinaiError
    from itwinai.launchers.reach import check_main_address

    limit = timedelta(seconds=request.limit)
    try:
        if rank:
            check_main_address(request.address, request.port, request.limit)
        store = dist.TCPStore(request.address, request.port, nodes, rank == 0, limit)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=nodes, timeout=limit)
        total = torch.full((1,), float(rank + 1))
        dist.all_reduce(total)
        if float(total) != nodes * (nodes + 1) / 2:
            return {
                "group_problem": f"an all-reduce adds up to {float(total):g} instead of {nodes * (nodes + 1) / 2:g}"
            }
        seconds = _round_trips(torch, dist, rank, nodes)
        dist.barrier()
        return {"round_trips": seconds}
    except ItwinaiError as error:
        return {"group_problem": str(error)}
    except (RuntimeError, OSError) as error:  # torch's errors of the network are both
        text = str(error).splitlines()[0]
        return {"group_problem": f"no connection with the others within {request.limit:.0f} s: {text}"}


def _round_trips(torch: Any, dist: Any, rank: int, nodes: int) -> dict[int, float]:
    """Return on rank 0 the seconds for some data to each node and back."""
    data = torch.zeros(_MESSAGE, dtype=torch.uint8)
    seconds: dict[int, float] = {}
    for other in range(1, nodes):
        for _ in range(2):  # the first makes the connection
            began = time.perf_counter()
            if rank == 0:
                dist.send(data, other)
                dist.recv(data, other)
                seconds[other] = time.perf_counter() - began
            elif rank == other:
                dist.recv(data, 0)
                dist.send(data, 0)
    return seconds


def main(arguments: list[str]) -> int:
    """Answer a request.

    Args:
        arguments: the request.
    """
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what it says of the network is said in other words

    def tell(part: dict[str, Any]) -> None:
        # In one write, as several nodes may share a pipe.
        sys.stdout.write(f"{MARK}{json.dumps({'node': node, **part})}\n")
        sys.stdout.flush()

    check_node(Request(**json.loads(arguments[0])), tell)
    sys.stdout.flush()
    os._exit(0)  # not through torch's way of leaving a group, which may wait for nodes that hang


if __name__ == "__main__":
    main(sys.argv[1:])
