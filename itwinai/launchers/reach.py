"""Whether the nodes of a run reach each other, found out within a minute and not after torch's half an hour."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

from itwinai.errors import ConfigurationError, ResourceError

LIMIT = 40.0
"""Seconds after which an address that does not answer at all is taken for one that cannot be reached."""

_ATTEMPT = 8.0  # seconds; a packet that is lost is sent again after 1, 3 and 7
_PAUSE = 0.5


def check_main_address(address: str, port: int, limit: float = LIMIT) -> None:
    """Check that rank 0's address resolves and can be reached from here.

    A port that is closed is in order: rank 0 may still be importing, and its node has answered. A port that drops
    packets, or a host without a route, does not answer.

    Args:
        address: host name or IP address of rank 0.
        port: the port on which it listens, or is about to.
        limit: seconds within which anything has to answer.

    Raises:
        ConfigurationError: the name does not resolve.
        ResourceError: nothing has answered.
    """
    here = socket.gethostname()
    try:
        resolved = str(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigurationError(
            f"The host name {address!r} of rank 0 does not resolve on {here} ({error}). Set MASTER_ADDR to a name or "
            f"an address of rank 0's node that all nodes know; `getent hosts {address}` shows what one knows."
        ) from None
    deadline = time.monotonic() + limit
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((resolved, port), timeout=max(0.1, min(_ATTEMPT, left))).close()
            return
        except ConnectionRefusedError:
            return
        except OSError as error:
            reason = error
        if deadline - time.monotonic() <= 0:
            break
        time.sleep(_PAUSE)
    shown = address if resolved == address else f"{address} ({resolved})"
    raise ResourceError(
        f"{here} does not reach rank 0 at {shown}, port {port}: {reason} for {limit:.0f} s. Either a firewall between "
        "the nodes drops the port (open it, or set MASTER_PORT to an open one), or this is not an address by which the "
        "nodes reach each other (set MASTER_ADDR to one that is; `ip addr` on rank 0's node lists them). "
        f"`nc -vz {address} {port}` tries it."
    )


def check_interface(variable: str) -> None:
    """Check that the network interfaces that an environment variable names are there.

    Args:
        variable: ``GLOO_SOCKET_IFNAME`` or ``NCCL_SOCKET_IFNAME``. NCCL takes beginnings of names, and after ``^``
            names to leave out.

    Raises:
        ConfigurationError: this machine has none of that name.
    """
    wanted = os.environ.get(variable, "")
    if not wanted or wanted.startswith("^"):
        return
    own = [name for _, name in socket.if_nameindex()]
    is_prefix = variable.startswith("NCCL") and not wanted.startswith("=")
    names = wanted.lstrip("=").split(",")
    found = [name for name in names if (any(one.startswith(name) for one in own) if is_prefix else name in own)]
    if not found or (variable.startswith("GLOO") and len(found) < len(names)):
        raise ConfigurationError(
            f"{variable}={wanted} names a network interface that {socket.gethostname()} does not have: it has "
            f"{', '.join(own)}. Set it to the one that connects the nodes (`ip addr` lists them with their addresses), "
            "or leave it out."
        )


def own_address(variable: str = "GLOO_SOCKET_IFNAME") -> str:
    """Return the address by which other workers will connect to this one, chosen as gloo does.

    Args:
        variable: names the interface; without it the address of the host's name counts.

    Raises:
        ConfigurationError: the interface has no IPv4 address.
    """
    name = os.environ.get(variable, "").split(",")[0]
    if not name:
        with suppress(OSError):
            return str(socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0])
        return "127.0.0.1"  # gloo's own choice if the name does not resolve
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
        except OSError as error:
            raise ConfigurationError(
                f"The network interface {variable}={name} of {socket.gethostname()} has no IPv4 address ({error}). Set "
                "it to the one that connects the nodes; `ip addr` lists them with their addresses."
            ) from None
    return socket.inet_ntoa(answer[20:24])
