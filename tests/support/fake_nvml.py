"""A stand-in for NVIDIA's library, for tests on machines without its GPUs: what `pynvml` would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace


class NVMLError(Exception):
    """What every call raises that does not succeed."""


@dataclass
class FakeGpu:
    """A GPU, or an instance of one.

    Attributes:
        uuid: by which it is found.
        name: of the model.
        milliwatts: of power; None where the device does not tell it.
        utilization: percentage; None where the device does not tell it.
        millijoules_per_reading: how much the counter grows every time it is read; None for a device without one.
        fails_after: readings of its power after which it has fallen off the bus.
    """

    uuid: str
    name: str = "Fake H100"
    milliwatts: int | None = 200_000
    utilization: int | None = 80
    millijoules_per_reading: int | None = 5_000
    fails_after: int | None = None
    millijoules: int = 123_456_789
    readings: int = 0

    def told(self, value: int | None) -> int:
        """Return a value, as far as the device has it and still answers."""
        if self.fails_after is not None and self.readings > self.fails_after:
            raise NVMLError("GPU is lost")
        if value is None:
            raise NVMLError("Not Supported")
        return value


class FakeNvml(ModuleType):
    """The module.

    Args:
        gpus: of the machine, by their numbers.
        instances: MIG instances, which are found by their uuid only.
        starts: whether the library can be initialised.
    """

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, gpus: Sequence[FakeGpu] = (), instances: Sequence[FakeGpu] = (), starts: bool = True) -> None:
        super().__init__("pynvml")
        self.gpus = list(gpus)
        self.instances = list(instances)
        self.starts = starts
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.starts:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in [*self.gpus, *self.instances]:
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return handle.uuid

    def nvmlDeviceGetName(self, handle: FakeGpu) -> bytes:
        return handle.name.encode()  # as older versions of the package

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(gpu=handle.told(handle.utilization), memory=10)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(used=handle.told(30_000_000_000), total=80_000_000_000)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        handle.readings += 1
        return handle.told(handle.milliwatts)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return handle.told(60)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:
        growth = handle.told(handle.millijoules_per_reading)
        handle.millijoules += growth
        return handle.millijoules
