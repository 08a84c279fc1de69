"""AMD's GPUs, read through AMD SMI (the package amdsmi, which comes with ROCm)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from itwinai.monitoring.gpu import Gpu, Gpus, UnavailableError
from itwinai.monitoring.visible_devices import Environment, visible_to_hip


def open_amd(environments: Sequence[Environment], used: Sequence[str] = ()) -> Gpus:
    """Return the GPUs that processes with these environments may use.

    Args:
        environments: of the processes.
        used: not needed here.

    Raises:
        UnavailableError: there is no package, no driver or no GPU.
    """
    try:
        import amdsmi as smi
    except ImportError as error:
        raise UnavailableError("the package amdsmi is not installed; it comes with ROCm") from error
    except (OSError, KeyError) as error:  # it loads its library when it is imported
        raise UnavailableError(f"AMD SMI: {error}") from error
    try:
        smi.amdsmi_init()
    except smi.AmdSmiException as error:
        raise UnavailableError(f"AMD SMI: {_line(error)}") from error

    def close() -> None:
        with contextlib.suppress(smi.AmdSmiException):
            smi.amdsmi_shut_down()

    try:
        return _open(smi, environments, close)
    except smi.AmdSmiException as error:
        close()
        raise UnavailableError(f"AMD SMI: {_line(error)}") from error
    except UnavailableError:
        close()
        raise


def _open(smi: Any, environments: Sequence[Environment], close: Callable[[], None]) -> Gpus:
    handles = {_id(smi, handle, number): handle for number, handle in enumerate(smi.amdsmi_get_processor_handles())}
    if not handles:
        raise UnavailableError("AMD SMI finds no GPU")
    visible = visible_to_hip(environments, list(handles))
    return Gpus([_gpu(smi, handles[unique], unique) for unique in visible.ids], close, visible.missing)


def _id(smi: Any, handle: Any, number: int) -> str:
    """Return the id by which ROCR_VISIBLE_DEVICES can name a GPU: its serial number, as in ``GPU-1a2b3c4d5e6f7a8b``."""
    try:
        serial = str(smi.amdsmi_get_gpu_asic_info(handle)["asic_serial"])
    except smi.AmdSmiException:
        serial = "N/A"
    return f"GPU-{serial.lower().removeprefix('0x')}" if serial != "N/A" else f"number {number}"


def _gpu(smi: Any, handle: Any, unique: str) -> Gpu:
    def power() -> float:
        info = smi.amdsmi_get_power_info(handle)
        # Which of them is there depends on the generation. The second half of an MI250X shows 0: the first has both's.
        keys = ("socket_power", "current_socket_power", "average_socket_power")
        for value in (info.get(key) for key in keys):
            if isinstance(value, (int, float)) and value > 0:
                return float(value)
        raise UnavailableError("the driver reports no power for it")

    def energy() -> float:
        info = smi.amdsmi_get_energy_count(handle)
        ticks = info.get("energy_accumulator", info.get("power"))  # the name in older versions
        return ticks * info["counter_resolution"] / 1e6  # the resolution is in microjoules

    def utilization() -> float:
        return _number(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"])

    def temperature() -> float:
        kind, now = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT
        return _number(smi.amdsmi_get_temp_metric(handle, kind, now))

    try:
        has_counter = energy() > 0
    except (smi.AmdSmiException, TypeError, KeyError):
        has_counter = False
    try:
        memory_total = _number(smi.amdsmi_get_gpu_vram_usage(handle)["vram_total"]) * 1e6
        name = smi.amdsmi_get_gpu_asic_info(handle)["market_name"]
    except (smi.AmdSmiException, UnavailableError):
        memory_total, name = None, "AMD GPU"
    return Gpu(
        label=f"{name}, {unique}",
        utilization=utilization,
        memory=lambda: _number(smi.amdsmi_get_gpu_vram_usage(handle)["vram_used"]) * 1e6,
        memory_total=memory_total,
        power=power,
        temperature=temperature,
        energy=energy if has_counter else None,
    )


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise UnavailableError(f"the driver reports {value!r}")
    return float(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
