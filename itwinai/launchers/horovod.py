"""Start Horovod in a worker that someone else launched.

horovodrun gives its workers a rendezvous server and their ranks. Under any other launcher rank 0 runs that server
itself, and the workers find it at the address that they know already.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment

from itwinai.compat import lightning_trainer
from itwinai.errors import ConfigurationError
from itwinai.launchers.environment_variables import environment_variables

RENDEZVOUS_TIMEOUT = timedelta(seconds=300)


def initialize(environment: ClusterEnvironment) -> None:
    """Initialise Horovod with this worker's ranks, unless it is already.

    Args:
        environment: the worker's ranks in its group.

    Raises:
        ConfigurationError: Horovod counts the workers otherwise than the launcher.
    """
    import horovod.torch as hvd

    if not hvd.is_initialized():
        # On rank 0 its server draws a port from Python's generator, and all ranks have to draw alike until they train.
        states = lightning_trainer.collect_rng_states(include_cuda=False)
        if "HOROVOD_RANK" in os.environ or hvd.mpi_built() and "OMPI_COMM_WORLD_RANK" in os.environ:
            hvd.init()
        else:
            with environment_variables(_rendezvous(environment)):
                hvd.init()
        lightning_trainer.set_rng_states(states)
    if (hvd.rank(), hvd.size()) != (environment.global_rank(), environment.world_size()):
        raise ConfigurationError(
            f"Horovod reports rank {hvd.rank()} of {hvd.size()}, but the launcher started rank "
            f"{environment.global_rank()} of {environment.world_size()}: hvd.init() ran before the trainer. Remove it "
            "from the script."
        )


def _rendezvous(environment: ClusterEnvironment) -> dict[str, str]:
    """Meet the other workers, and return the variables by which Horovod finds them again."""
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousServer

    rank, size = environment.global_rank(), environment.world_size()
    # torchrun's agent has a store at this address already, which outlives workers that it restarts.
    agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    server = dist.TCPStore(
        environment.main_address,
        environment.main_port,
        size,
        is_master=rank == 0 and not agent_has_store,
        timeout=RENDEZVOUS_TIMEOUT,
        wait_for_workers=False,
    )
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
    # Node ranks name the nodes: host names may be the same on all, as in containers.
    mine = {"node": environment.node_rank(), "local_rank": environment.local_rank()}
    store.set(f"itwinai/{rank}", json.dumps(mine))
    slots = [json.loads(store.get(f"itwinai/{other}")) for other in range(size)]

    def slot_info(of: int) -> SlotInfo:
        node, local_rank = slots[of]["node"], slots[of]["local_rank"]
        same_local_rank = [slot["node"] for slot in slots if slot["local_rank"] == local_rank]
        return SlotInfo(
            hostname=f"node-{node}",
            rank=of,
            local_rank=local_rank,
            cross_rank=same_local_rank.index(node),
            size=size,
            local_size=sum(slot["node"] == node for slot in slots),
            cross_size=len(same_local_rank),
        )

    if rank == 0:
        server = RendezvousServer()
        port = server.start()
        server.init([slot_info(other) for other in range(size)])
        store.set("itwinai/rendezvous", str(port))
        atexit.register(server.stop)
    port = int(store.get("itwinai/rendezvous"))
    store.set(f"itwinai/{rank}/ready", "1")
    if rank == 0:  # the store lives in rank 0, and must outlast the last reader
        store.wait([f"itwinai/{other}/ready" for other in range(size)])
    own = slot_info(rank)
    return {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": socket.gethostbyname(environment.main_address),
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": os.environ.get("HOROVOD_GLOO_IFACE") or interface_towards(environment.main_address),
        "HOROVOD_HOSTNAME": own.hostname,
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(size),
        "HOROVOD_LOCAL_RANK": str(own.local_rank),
        "HOROVOD_LOCAL_SIZE": str(own.local_size),
        "HOROVOD_CROSS_RANK": str(own.cross_rank),
        "HOROVOD_CROSS_SIZE": str(own.cross_size),
    }


def interface_towards(address: str) -> str:
    """Return the name of the network interface by which this machine reaches an address."""
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing: it only chooses a route
        own_address = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        if any(entry.address == own_address for entry in addresses):
            return name
    # An address of 127.0.0.0/8 other than 127.0.0.1, as Debian gives to its own host name.
    return next(name for name, entries in interfaces.items() if any(e.address == "127.0.0.1" for e in entries))
