"""The energy of the processors, from the counters that Linux shows in /sys/class/powercap (RAPL).

Intel and AMD processors have them. They count all work of the processor, for every process.
"""

from __future__ import annotations

import re
from pathlib import Path

from itwinai.monitoring.energy import CounterMeter, EnergySource
from itwinai.monitoring.gauges import Gauge, Instruments

POWERCAP = Path("/sys/class/powercap")

# The cores and the graphics unit are in the package already; `psys` holds the package and more.
_COUNTED = re.compile(r"package-\d+(-die-\d+)?|dram")


def rapl_instruments(folder: Path = POWERCAP) -> Instruments:
    """Return what reads the energy of processors and their memory.

    Args:
        folder: where the system shows the counters.
    """
    gauges: list[Gauge] = []
    sources: list[EnergySource] = []
    missing: dict[str, str] = {}
    # One per package, and below it what is counted apart. `intel-rapl-mmio:*` would count the packages a second time.
    zones = sorted(folder.glob("intel-rapl:*"))
    for zone in zones:
        try:
            if (name := _name(zone)) is None:
                continue
        except OSError as error:
            missing[f"energy of {zone.name}"] = _reason(error)
            continue
        quantity = f"energy of {name}"
        counter = zone / "energy_uj"
        try:
            wraps_at = float((zone / "max_energy_range_uj").read_text())
            counter.read_text()
        except (OSError, ValueError) as error:
            missing[quantity] = _reason(error)
            continue
        gauges.append(Gauge((quantity,), lambda counter=counter: (float(counter.read_text()),)))  # type: ignore[misc]
        sources.append(EnergySource(name, quantity, CounterMeter(1e-6, wraps_at)))
    if not zones:
        missing["energy of the CPU packages"] = f"not exposed here ({folder} has no intel-rapl)"
    return Instruments(gauges, sources, missing)


def _name(zone: Path) -> str | None:
    """Return what a zone counts, as people read it; None if another zone counts it as well."""
    name = (zone / "name").read_text().strip()
    if not _COUNTED.fullmatch(name):
        return None
    if name == "dram":
        return f"DRAM {zone.name.split(':')[1]}"
    return f"CPU package {name.removeprefix('package-')}"


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"{error.filename} may not be read by this user; administrators can allow it, as with "
            "`chmod -R a+r /sys/class/powercap/intel-rapl/`"
        )
    return str(error)
