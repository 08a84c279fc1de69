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


def spans_nodes(world_size: int) -> bool:
    """Return whether torchrun, srun or their like say that there are workers on other nodes too.

    Args:
        world_size: number of workers.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    if here.isdigit():
        return world_size > int(here)
    nodes = os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES", "")
    return nodes.isdigit() and int(nodes) > 1


def check_network(address: str, port: int, uses_gloo: bool, limit: float = LIMIT) -> None:
    """Check on a worker of several nodes that it will reach the others, before torch waits for them for long.

    Args:
        address: host name or IP address of rank 0.
        port: the port on which it listens, or is about to.
        uses_gloo: whether gloo connects the workers, whose connections come from one interface.
        limit: see `check_main_address`.

    Raises:
        ConfigurationError: a name does not resolve, or an interface is not there or leads nowhere.
        ResourceError: rank 0 does not answer.
    """
    if _is_loopback(address):
        return
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        check_interface(variable)
    source = own_address() if uses_gloo else None
    if source is not None and _is_loopback(source):
        if _is_own(address):  # then all nodes may be this machine; where one is not, that one says so
            return
        name = os.environ.get("GLOO_SOCKET_IFNAME")
        what = f"GLOO_SOCKET_IFNAME={name} has" if name else f"The host name {socket.gethostname()!r} resolves to"
        raise ConfigurationError(
            f"{what} the address {source} on {socket.gethostname()}, by which the other nodes do not reach it. Set "
            "GLOO_SOCKET_IFNAME to the interface that connects the nodes; `ip addr` lists them with their addresses."
        )
    check_main_address(address, port, limit, source)


def check_main_address(address: str, port: int, limit: float = LIMIT, source: str | None = None) -> None:
    """Check that rank 0's address resolves and can be reached from here.

    A port that is closed is in order: rank 0 may still be importing, and its node has answered. A port that drops
    packets, or a host without a route, does not answer.

    Args:
        address: host name or IP address of rank 0.
        port: the port on which it listens, or is about to.
        limit: seconds within which anything has to answer.
        source: own address to connect from; by default what the system chooses.

    Raises:
        ConfigurationError: the name does not resolve.
        ResourceError: nothing has answered.
    """
    here = socket.gethostname()
    resolved = resolved_address(address, port, here)
    own = (source, 0) if source is not None and (":" in source) == (":" in resolved) else None
    deadline = time.monotonic() + limit
    while True:
        left = deadline - time.monotonic()
        try:
            wait = max(0.1, min(_ATTEMPT, left))
            socket.create_connection((resolved, port), timeout=wait, source_address=own).close()
            return
        except ConnectionRefusedError:
            return
        except OSError as error:
            reason = error
        if deadline - time.monotonic() <= 0:
            break
        time.sleep(_PAUSE)
    via = f" from its address {source}" if own else ""
    shown = address if resolved == address else f"{address} ({resolved})"
    raise ResourceError(
        f"{here} does not reach rank 0 at {shown}, port {port}{via}: {reason} for {limit:.0f} s. Either a firewall "
        "between the nodes drops the port (open it, or set MASTER_PORT to an open one), or the nodes do not reach each "
        "other by these addresses (set MASTER_ADDR to one by which they do, and GLOO_SOCKET_IFNAME to the interface "
        f"with it; `ip addr` lists them). `nc -vz {address} {port}` tries it."
    )


def resolved_address(name: str, port: int, here: str = "") -> str:
    """Return the IP address of rank 0.

    Args:
        name: its host name, or an IP address.
        port: the port on which it listens, or is about to.
        here: name of this host, for the message.

    Raises:
        ConfigurationError: the name does not resolve.
    """
    try:
        return str(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigurationError(
            f"The host name {name!r} of rank 0 does not resolve{here and f' on {here}'} ({error}). Set MASTER_ADDR (of "
            "a job: --env, or environment: of the site) to a name or an address of rank 0's node that all nodes know; "
            f"`getent hosts {name}` shows what one knows."
        ) from None


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


def _is_own(address: str) -> bool:
    """Return whether an address is one of this machine."""
    with suppress(OSError):
        family, kind, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
            return True
    return False


def _is_loopback(address: str) -> bool:
    return address == "localhost" or address == "::1" or address.startswith("127.")
