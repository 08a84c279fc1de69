"""A real MLflow server on this machine, with its store in a folder, that can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

PATIENCE = 120.0  # seconds; a start takes ten of a free machine


class Server:
    """One server; what it stored is there again when it is started again.

    Args:
        folder: for its store, its files and what it prints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"127.0.0.1:{free_port()}"
        self.address = f"http://{self.host}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        host, port = self.host.split(":")
        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        command = ["mlflow", "server", "--backend-store-uri", store, "--host", host, "--port", port, "--workers", "1"]
        with (self.folder / "server.txt").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, "--default-artifact-root", str(self.folder / "artifacts")],
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < until, (self.folder / "server.txt").read_text()
            time.sleep(0.1)

    def freeze(self) -> None:
        """Let it take connections, and do nothing else, as under too much load."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and its workers, as the loss of its machine would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.address}/health", timeout=5).ok
        except requests.RequestException:
            return False


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
