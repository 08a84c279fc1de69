"""NVIDIA's GPUs, read through NVML (the package nvidia-ml-py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from itwinai.monitoring.gpu import Gpu, Gpus, UnavailableError
from itwinai.monitoring.visible_devices import CUDA, ORDER, Environment, visible_to_cuda


def open_nvidia(environments: Sequence[Environment], used: Sequence[str] = ()) -> Gpus:
    """Return the GPUs that processes with these environments may use.

    Args:
        environments: of the processes.
        used: ids of the GPUs that they are known to use.

    Raises:
        UnavailableError: there is no package, no driver or no GPU.
    """
    try:
        import pynvml as nvml
    except ImportError as error:
        raise UnavailableError(
            "the package nvidia-ml-py is not installed; `pip install 'itwinai[watch]'` installs it"
        ) from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise UnavailableError(f"NVML: {error}") from error

    def close() -> None:
        with contextlib.suppress(nvml.NVMLError):  # a driver that has failed has nothing to close
            nvml.nvmlShutdown()

    try:
        return _open(nvml, environments, used, close)
    except nvml.NVMLError as error:
        close()
        raise UnavailableError(f"NVML: {error}") from error
    except UnavailableError:
        close()
        raise


def _open(nvml: Any, environments: Sequence[Environment], used: Sequence[str], close: Callable[[], None]) -> Gpus:
    numbered = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    if not numbered:
        raise UnavailableError("NVML finds no GPU")
    handles = {_text(nvml.nvmlDeviceGetUUID(handle)): handle for handle in numbered}
    visible = visible_to_cuda(environments, list(handles))
    missing = dict(visible.missing)
    gpus = []
    for unique in visible.ids:
        try:
            handle = handles[unique] if unique in handles else nvml.nvmlDeviceGetHandleByUUID(unique)
        except nvml.NVMLError as error:
            missing[f"GPU {unique!r}"] = f"{CUDA} names it, and NVML does not find it: {error}"
            continue
        gpus.append(_gpu(nvml, handle, unique))
    if not any(unique.startswith("MIG-") for unique in visible.ids):
        for unique in sorted({*used} - {*handles}):
            missing[f"GPU {unique!r}"] = "a worker uses it, and the one that measures its node may not see it"
    names = {_text(nvml.nvmlDeviceGetName(handle)) for handle in numbered}
    if visible.by_number and len(names) > 1 and any(env.get(ORDER) != "PCI_BUS_ID" for env in environments):
        missing["numbers of the GPUs"] = (
            f"there are several kinds ({', '.join(sorted(names))}), which CUDA numbers by speed and NVML by "
            f"place; set {ORDER}=PCI_BUS_ID, so that {CUDA} means the same for both"
        )
    return Gpus(gpus, close, missing)


def _gpu(nvml: Any, handle: Any, unique: str) -> Gpu:
    def power() -> float:
        if (milliwatts := nvml.nvmlDeviceGetPowerUsage(handle)) <= 0:
            raise UnavailableError("the driver reports 0 W")
        return milliwatts / 1000

    def energy() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000

    try:
        energy()
        has_counter = True
    except nvml.NVMLError:  # older than Volta, or an instance
        has_counter = False
    try:
        memory_total = float(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        memory_total = None
    return Gpu(
        label=f"{_text(nvml.nvmlDeviceGetName(handle))}, {unique}",
        utilization=lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        memory=lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        memory_total=memory_total,
        power=power,
        temperature=lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        energy=energy if has_counter else None,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes in older versions of the package
