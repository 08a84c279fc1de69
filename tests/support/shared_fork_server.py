"""One fork server for many fits whose workers are sent a payload: each would start, and import in, its own.

Fits of a process that runs threads, as loggers' and Ray's, send payloads. How a fit starts its own server, and ends it,
is tested in `tests/launchers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from itwinai.launchers import fork_server
from itwinai.launchers.fork_server import ForkServer, ForkServerClient

MODULES = ("itwinai.trainer", "itwinai.strategies", "deepspeed", "horovod.torch")


class SharedForkServer:
    """The server of this process and its copies, once it is started."""

    def __init__(self) -> None:
        self._server: ForkServer | None = None

    def start(self) -> None:
        """Start it, unless it has been."""
        self._server = self._server or ForkServer(MODULES)

    def stop(self) -> None:
        """End it, if it has been started."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let fits connect to it instead of starting a server each."""
        began_here = self._server is None
        self.start()
        start_own = ForkServerClient.start

        def connect(modules: Iterable[str], variables: Mapping[str, str]) -> ForkServerClient:
            assert self._server is not None
            if fork_server._read_when_loaded(variables) != fork_server._read_when_loaded({}):
                return start_own(modules, variables)
            return ForkServerClient.connect(self._server.path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ForkServerClient, "start", connect)
            yield
        if began_here:
            self.stop()


SHARED = SharedForkServer()
