"""A stand-in for AMD's library, for tests on machines without its GPUs: what `amdsmi` would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any


class AmdSmiException(Exception):
    """What every call raises that does not succeed."""


@dataclass
class FakeAmdGpu:
    """A GPU.

    Attributes:
        serial: as ``asic_serial`` has it.
        watts: of power; "N/A" or 0 where the device does not tell it.
        ticks_per_reading: how much the energy counter grows every time it is read; 0 for a device without one.
    """

    serial: str
    watts: Any = 300
    ticks_per_reading: int = 1_000_000
    ticks: int = 0


class FakeAmdSmi(ModuleType):
    """The module.

    Args:
        gpus: of the machine, by their numbers.
    """

    AmdSmiException = AmdSmiException
    AmdSmiTemperatureType = SimpleNamespace(HOTSPOT="hotspot")
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT="current")

    def __init__(self, gpus: Sequence[FakeAmdGpu]) -> None:
        super().__init__("amdsmi")
        self.gpus = list(gpus)
        self.open = 0

    def amdsmi_init(self) -> None:
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[FakeAmdGpu]:
        return self.gpus

    def amdsmi_get_gpu_asic_info(self, handle: FakeAmdGpu) -> dict[str, Any]:
        return {"asic_serial": handle.serial, "market_name": "Fake MI250X"}

    def amdsmi_get_gpu_activity(self, handle: FakeAmdGpu) -> dict[str, Any]:
        return {"gfx_activity": 70, "umc_activity": 5, "mm_activity": "N/A"}

    def amdsmi_get_gpu_vram_usage(self, handle: FakeAmdGpu) -> dict[str, Any]:
        return {"vram_total": 64_000, "vram_used": 16_000}

    def amdsmi_get_power_info(self, handle: FakeAmdGpu) -> dict[str, Any]:
        return {"current_socket_power": "N/A", "average_socket_power": handle.watts}

    def amdsmi_get_energy_count(self, handle: FakeAmdGpu) -> dict[str, Any]:
        handle.ticks += handle.ticks_per_reading
        return {"energy_accumulator": handle.ticks, "counter_resolution": 15.3, "timestamp": 0}

    def amdsmi_get_temp_metric(self, handle: FakeAmdGpu, sensor: Any, metric: Any) -> int:
        return 50
