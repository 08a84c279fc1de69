"""GPUs of any vendor: utilization, memory, power, temperature, energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from itwinai.monitoring.amdsmi import open_amd
from itwinai.monitoring.energy import CounterMeter, EnergySource, Meter, PowerMeter
from itwinai.monitoring.gauges import Gauge, Instruments
from itwinai.monitoring.gpu import Gpus, UnavailableError
from itwinai.monitoring.node_topology import Node
from itwinai.monitoring.nvml import open_nvidia
from itwinai.monitoring.visible_devices import Environment


def gpus_of(node: Node) -> Instruments:
    """Return what measures the GPUs of a node's workers."""
    used = [worker.gpu for worker in node.workers if worker.gpu is not None]
    return gpu_instruments([worker.gpus for worker in node.workers], used)


def gpu_instruments(environments: Sequence[Environment], used: Sequence[str] = ()) -> Instruments:
    """Return what measures the GPUs that some processes of this node may use.

    Args:
        environments: of these processes; see `itwinai.monitoring.visible_devices.gpu_environment`.
        used: ids of the GPUs that they are known to use, as far as they know.
    """
    reasons = []
    for maker, open_gpus in (("NVIDIA", open_nvidia), ("AMD", open_amd)):
        try:
            found = open_gpus(environments, used)
        except UnavailableError as error:
            reasons.append(f"{maker}: {error}")
            continue
        return _instruments(found)
    return Instruments(missing={"GPUs": "; ".join(reasons)}, facts={"GPUs": "none found"})


def _instruments(found: Gpus) -> Instruments:
    gauges: list[Gauge] = []
    sources: list[EnergySource] = []
    facts = {"GPUs": str(len(found.gpus))}
    for number, gpu in enumerate(found.gpus):
        name = f"gpu{number}"
        facts[name] = gpu.label
        if gpu.memory_total is not None:
            facts[name] += f", {gpu.memory_total / 1e9:.0f} GB"
        gauges += [
            _gauge(f"{name}_utilization_percent", gpu.utilization),
            _gauge(f"{name}_memory_gb", lambda gpu=gpu: gpu.memory() / 1e9),  # type: ignore[misc]
            _gauge(power := f"{name}_power_w", gpu.power),
            _gauge(f"{name}_temperature_c", gpu.temperature),
        ]
        meter: Meter = PowerMeter()
        quantity = power
        if gpu.energy is not None:
            meter, quantity = CounterMeter(1.0), f"energy of {name}"
            gauges.append(_gauge(quantity, gpu.energy))
        sources.append(EnergySource(name, quantity, meter))
    return Instruments(gauges, sources, found.missing, facts, found.close)


def _gauge(quantity: str, read: Callable[[], float]) -> Gauge:
    return Gauge((quantity,), lambda: (read(),))
