"""A command within a Ray cluster over all nodes of its job: ``python -m itwinai.slurm.ray_cluster ARGUMENTS``.

The arguments are those of Python.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import FrameType


def main(arguments: list[str]) -> int:
    """Run Python with some arguments while there is a Ray cluster; return its exit code.

    Signals are handed to the command, which saves and ends; the cluster ends with it.

    Args:
        arguments: of Python.
    """
    from itwinai.launchers.ray_slurm import agree_on_token, allocated_nodes, ray_over

    received: list[int] = []
    command: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if command is None:
            raise SystemExit(128 + number)  # the cluster is not there yet: nothing is to be saved
        command.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    agree_on_token()
    nodes = allocated_nodes()
    with ray_over(nodes) if len(nodes) > 1 else nullcontext() as address:
        variables = {"RAY_ADDRESS": address} if address else {}
        command = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **variables})
        code = command.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
