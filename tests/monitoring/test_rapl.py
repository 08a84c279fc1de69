"""The energy of the processors is read where Linux shows it; what is counted twice there counts once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from itwinai.monitoring.gauges import Gauges, Instruments
from itwinai.monitoring.rapl import rapl_instruments

MAXIMUM = 262_143_328_850


@pytest.fixture
def powercap() -> Iterator[Path]:
    """A folder that other users may look into, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def zone(powercap: Path, name: str, kind: str, microjoules: int) -> Path:
    folder = powercap / name
    folder.mkdir()
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(f"{MAXIMUM}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder


def read(instruments: Instruments, gauges: Gauges) -> None:
    meters = {source.quantity: source.meter for source in instruments.energy}
    for quantity, value, at in gauges.read(everything=True):
        meters[quantity].add(value, at)


def joules(instruments: Instruments) -> dict[str, float]:
    return {source.name: round(source.meter.joules, 6) for source in instruments.energy}


def test_packages_and_memory_count_and_their_parts_and_doubles_do_not(powercap: Path) -> None:
    first = zone(powercap, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(powercap, "intel-rapl:1", "package-1-die-0", MAXIMUM - 1_000_000)
    memory = zone(powercap, "intel-rapl:0:1", "dram", 0)
    for name, kind in {"intel-rapl:0:0": "core", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}.items():
        zone(powercap, name, kind, 7)
    instruments = rapl_instruments(powercap)
    gauges = Gauges(instruments.gauges, instruments.missing, "node")
    read(instruments, gauges)
    (first / "energy_uj").write_text("3000000")
    (second / "energy_uj").write_text("4000000")  # it has begun again from 0
    (memory / "energy_uj").write_text("500000")
    read(instruments, gauges)
    assert joules(instruments) == {"CPU package 0": 2.0, "CPU package 1-die-0": 5.0, "DRAM 0": 0.5}
    assert gauges.missing == {}


def test_file_that_may_not_be_read_is_named_with_what_to_do(powercap: Path) -> None:
    zone(powercap, "intel-rapl:0", "package-0", 1)
    counter = zone(powercap, "intel-rapl:1", "package-1", 1) / "energy_uj"
    counter.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        instruments = rapl_instruments(powercap)
    finally:
        os.seteuid(user)
    assert [source.name for source in instruments.energy] == ["CPU package 0"]
    assert f"{counter} may not be read by this user" in instruments.missing["energy of CPU package 1"]
    assert "chmod" in instruments.missing["energy of CPU package 1"]


def test_counter_that_goes_away_keeps_what_it_has_counted(powercap: Path) -> None:
    folder = zone(powercap, "intel-rapl:0", "package-0", 0)
    instruments = rapl_instruments(powercap)
    gauges = Gauges(instruments.gauges, instruments.missing, "node")
    read(instruments, gauges)
    (folder / "energy_uj").write_text("9000000")
    read(instruments, gauges)
    (folder / "energy_uj").unlink()
    read(instruments, gauges)
    read(instruments, gauges)
    assert joules(instruments) == {"CPU package 0": 9.0}
    assert "No such file" in gauges.missing["energy of CPU package 0"]
    assert "after the start" in gauges.missing["energy of CPU package 0"]


def test_machine_without_counters(powercap: Path) -> None:
    zone(powercap, "dtpm", "package-0", 1)
    for folder in (powercap, powercap / "none"):
        instruments = rapl_instruments(folder)
        assert not instruments.energy
        assert "not exposed here" in instruments.missing["energy of the CPU packages"]
