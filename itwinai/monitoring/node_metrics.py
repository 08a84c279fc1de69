"""A node as a whole, others' work included: processor, memory, network."""

from __future__ import annotations

from pathlib import Path

from itwinai.monitoring.gauges import Gauge, Instruments, Rate

_INTERFACES = Path("/sys/class/net")


class Machine:
    """What the whole node uses."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._cpu: tuple[float, float] | None = None
        self._received, self._sent = Rate(), Rate()
        self.interfaces = _interfaces()

    def cpu(self) -> tuple[float | None]:
        """Return the percentage of all cores that is in use."""
        times = self._psutil.cpu_times()
        # Linux counts guests' time in the users' time already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        before, self._cpu = self._cpu, (busy, total)
        if before is None or total <= before[1]:
            return (None,)
        return (100 * (busy - before[0]) / (total - before[1]),)

    def memory(self) -> tuple[float, float]:
        """Return the percentage of the memory that is not available to new programs, and the GB that are."""
        memory = self._psutil.virtual_memory()
        return 100 * (1 - memory.available / memory.total), memory.available / 1e9

    def network(self) -> tuple[float | None, float | None]:
        """Return the MB per second that are received and sent."""
        counters = self._psutil.net_io_counters(pernic=True)
        found = [counters[name] for name in self.interfaces if name in counters]
        rates = self._received(sum(c.bytes_recv for c in found)), self._sent(sum(c.bytes_sent for c in found))
        received, sent = (None if rate is None else rate / 1e6 for rate in rates)
        return received, sent


def machine_instruments() -> Instruments:
    """Return what measures this node."""
    import psutil

    machine = Machine()
    gauges = [
        Gauge(("node_cpu_percent",), machine.cpu),
        Gauge(("node_memory_percent", "node_memory_available_gb"), machine.memory),
    ]
    missing = {}
    network = ("network_received_mb_per_s", "network_sent_mb_per_s")
    if machine.interfaces:
        gauges.append(Gauge(network, machine.network))
    else:
        missing = dict.fromkeys(network, "there is no network interface but the loopback")
    facts = {
        "node cores": str(psutil.cpu_count() or 1),
        "node memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "network interfaces": ", ".join(machine.interfaces) or "none",
    }
    return Instruments(gauges, missing=missing, facts=facts)


def _interfaces() -> list[str]:
    """Return the network interfaces to count.

    Not the loopback; and, where Linux tells them apart, those of hardware only: bridges and tunnels pass on what
    goes through these.
    """
    import psutil

    states = psutil.net_if_stats()
    names = [name for name, state in states.items() if "loopback" not in state.flags and not name.startswith("lo")]
    of_hardware = [name for name in names if (_INTERFACES / name / "device").exists()]
    return sorted(of_hardware or names)
