"""GPUs, whoever has made them: utilization, memory, power, temperature, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from itwinai.errors import ItwinaiError
from itwinai.monitoring.energy import CounterMeter, EnergySource, Meter, PowerMeter
from itwinai.monitoring.gauges import Gauge, Instruments
from itwinai.monitoring.node_topology import Node
from itwinai.monitoring.visible_devices import Environment


class UnavailableError(ItwinaiError):
    """A library that reads GPUs is not there or does not work; or a GPU does not have what was requested."""


@dataclass(frozen=True)
class Gpu:
    """A GPU. Each function raises what its library raises where the GPU does not have what it reads.

    Attributes:
        label: its name and id.
        utilization: percentage of the time in which it computes.
        memory: bytes in use, by whomever.
        memory_total: bytes it has; None if it does not tell.
        power: in watts.
        temperature: in degrees Celsius.
        energy: a counter, in joules; None if it has none.
    """

    label: str
    utilization: Callable[[], float]
    memory: Callable[[], float]
    memory_total: float | None
    power: Callable[[], float]
    temperature: Callable[[], float]
    energy: Callable[[], float] | None


@dataclass(frozen=True)
class Gpus:
    """The GPUs that are visible to the workers of this node.

    Attributes:
        gpus: those that can be read.
        close: called when nothing is read any more.
        missing: reason by what the environment names and cannot be found.
    """

    gpus: Sequence[Gpu]
    close: Callable[[], None]
    missing: Mapping[str, str] = field(default_factory=dict)


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
    # Only now: each of them imports what its maker's library needs.
    from itwinai.monitoring.amdsmi import open_amd
    from itwinai.monitoring.nvml import open_nvidia

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
