"""Two machines on this one: network namespaces with a cable between them, for tests as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = {f"itwinai-a-{os.getpid()}": "10.77.0.1", f"itwinai-b-{os.getpid()}": "10.77.0.2"}
"""The machines, and the address of the interface eth0 of each. The second also has eth1, which leads nowhere."""


def can_make_machines() -> bool:
    """Tell whether this process may make network namespaces."""
    try:
        made = subprocess.run(["ip", "netns", "add", next(iter(ADDRESSES))], capture_output=True)
    except FileNotFoundError:
        return False
    _forget()
    return made.returncode == 0


def on(machine: str, *command: str) -> list[str]:
    """Return a command that runs on one of the machines."""
    return ["ip", "netns", "exec", machine, *command]


@contextmanager
def two_machines() -> Iterator[None]:
    """Have the machines of `ADDRESSES`, for as long as the context lasts."""
    first, second = ADDRESSES
    _forget()
    try:
        for machine in ADDRESSES:
            _do("ip", "netns", "add", machine)
            _do(*on(machine, "ip", "link", "set", "lo", "up"))
        _do("ip", "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for machine, address in ADDRESSES.items():
            _do(*on(machine, "ip", "addr", "add", f"{address}/24", "dev", "eth0"))
            _do(*on(machine, "ip", "link", "set", "eth0", "up"))
        _do(*on(second, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2"))
        _do(*on(second, "ip", "addr", "add", "10.78.0.2/24", "dev", "eth1"))
        for interface in ("eth1", "eth2"):
            _do(*on(second, "ip", "link", "set", interface, "up"))
        yield
    finally:
        _forget()


@contextmanager
def packets_dropped() -> Iterator[None]:
    """Let the first machine send nothing to the second, as behind a firewall."""
    first, second = ADDRESSES
    route = f"{ADDRESSES[second]}/32"
    _do(*on(first, "ip", "route", "add", "blackhole", route))
    try:
        yield
    finally:
        _do(*on(first, "ip", "route", "del", "blackhole", route))


def _forget() -> None:
    for machine in ADDRESSES:
        subprocess.run(["ip", "netns", "del", machine], capture_output=True)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
