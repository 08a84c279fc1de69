"""GPUs of both makers are read through one interface; what one of them cannot tell is missing, and never zero."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from itwinai.monitoring.gauges import Gauges, Instruments
from itwinai.monitoring.gpus import gpu_instruments
from itwinai.monitoring.system_sampler import Sampled, Sampler
from tests.support.fake_amdsmi import FakeAmdGpu, FakeAmdSmi
from tests.support.fake_nvml import FakeGpu, FakeNvml

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts stand-ins in the place of the makers' libraries."""

    def put(nvml: FakeNvml | None = None, amdsmi: FakeAmdSmi | None = None) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: as if it was not installed
        monkeypatch.setitem(sys.modules, "amdsmi", amdsmi)

    return put


def sampled(
    times: int, environments: Sequence[dict[str, str]] = ({},), used: Sequence[str] = (), of: str | None = None
) -> Sampled:
    """Return what a sampler has after so many samples, or readings of one quantity, none waits for another."""

    def done() -> int:
        result = sampler.sampled()
        if of is None:
            return result.cost.samples
        return result.quantities[of].samples if of in result.quantities else 0

    sampler = Sampler({"GPUs": lambda: gpu_instruments(environments, used)}, 1e-6, "node")
    sampler.start()
    while done() < times:
        pass
    sampler.stop()
    return sampler.sampled()


def values(instruments: Instruments) -> dict[str, float]:
    return {name: value for name, value, _ in Gauges(instruments.gauges, {}, "node").read(everything=True)}


def test_two_gpus_with_counters(libraries: Any) -> None:
    nvml = FakeNvml([FakeGpu("GPU-a"), FakeGpu("GPU-b", utilization=20, millijoules_per_reading=1_000)])
    libraries(nvml)
    result = sampled(5)
    assert result.facts["GPUs"] == "2"
    assert result.facts["gpu1"] == "Fake H100, GPU-b, 80 GB"
    assert result.missing == {}
    quantities = {name: quantity.mean for name, quantity in result.quantities.items()}
    assert quantities["gpu0_utilization_percent"] == 80
    assert quantities["gpu1_utilization_percent"] == 20
    assert quantities["gpu0_memory_gb"] == 30
    assert quantities["gpu0_power_w"] == pytest.approx(200)
    assert quantities["gpu0_temperature_c"] == 60
    assert not any("energy" in name for name in quantities)  # where a counter stands is no quantity
    first, second = result.energy
    assert (first.source, first.method, second.method) == ("gpu0", "counter", "counter")
    for use, gpu, step in zip((first, second), nvml.gpus, (5_000, 1_000), strict=True):
        begun = 123_456_789 + 2 * step  # the first reading was to see whether there is a counter
        assert use.joules == pytest.approx((gpu.millijoules - begun) / 1000)  # a counter may be read less often
    assert nvml.open == 0


def test_gpu_without_counter(libraries: Any) -> None:
    libraries(FakeNvml([FakeGpu("GPU-a", millijoules_per_reading=None)]))
    (use,) = sampled(5).energy
    assert use.method == "power"
    assert use.joules == pytest.approx(200 * use.seconds)


def test_gpus_of_the_environment(libraries: Any) -> None:
    libraries(FakeNvml([FakeGpu(f"GPU-{letter}{letter}", utilization=n) for n, letter in enumerate("abc")]))
    assert values(gpu_instruments([{VISIBLE: "2"}]))["gpu0_utilization_percent"] == 2
    assert values(gpu_instruments([{VISIBLE: "GPU-b"}]))["gpu0_utilization_percent"] == 1
    assert values(gpu_instruments([{VISIBLE: "1"}, {VISIBLE: "0"}]))["gpu1_utilization_percent"] == 0
    none = gpu_instruments([{VISIBLE: ""}])
    assert (none.facts, values(none)) == ({"GPUs": "0"}, {})


def test_instance_has_neither_power_nor_utilization(libraries: Any) -> None:
    instance = FakeGpu("MIG-1", milliwatts=None, utilization=None, millijoules_per_reading=None)
    libraries(FakeNvml([FakeGpu("GPU-a")], [instance]))
    result = sampled(3, [{VISIBLE: "MIG-1,MIG-2"}])
    assert set(result.quantities) == {"gpu0_memory_gb", "gpu0_temperature_c"}
    assert result.energy == []
    assert result.missing["gpu0_power_w"] == result.missing["gpu0_utilization_percent"] == "Not Supported"
    assert "NVML does not find it: Not Found" in result.missing["GPU 'MIG-2'"]


def test_gpu_that_fails_half_way_keeps_what_was_measured(libraries: Any, caplog: pytest.LogCaptureFixture) -> None:
    libraries(FakeNvml([FakeGpu("GPU-a", fails_after=3), FakeGpu("GPU-b")]))
    result = sampled(8, of="gpu1_power_w")  # a busy thread skips readings
    assert result.quantities["gpu0_power_w"].samples == 3
    assert result.quantities["gpu0_power_w"].mean == pytest.approx(200)
    assert result.quantities["gpu1_power_w"].samples >= 8
    assert result.missing["gpu0_power_w"].startswith("GPU is lost; from 0 s after the start on")
    lost, whole = result.energy
    assert 0 < lost.joules < whole.joules
    assert lost.seconds < whole.seconds
    said = [record.getMessage() for record in caplog.records if "gpu0_power_w" in record.getMessage()]
    assert len(said) == 1  # and not at every sample


def test_library_that_does_not_start(libraries: Any) -> None:
    libraries(FakeNvml([FakeGpu("GPU-a")], starts=False))
    result = sampled(2)
    assert (result.quantities, result.energy) == ({}, [])
    assert "NVIDIA: NVML: Driver Not Loaded" in result.missing["GPUs"]
    assert "amdsmi is not installed" in result.missing["GPUs"]


def test_machine_without_gpus(libraries: Any) -> None:
    libraries(FakeNvml([]))
    assert "NVML finds no GPU" in gpu_instruments([{}]).missing["GPUs"]
    libraries(None)
    assert "nvidia-ml-py is not installed; `pip install 'itwinai[watch]'`" in gpu_instruments([{}]).missing["GPUs"]


def test_gpu_of_a_worker_that_cannot_be_seen_is_named(libraries: Any) -> None:
    libraries(FakeNvml([FakeGpu("GPU-a")]))
    assert "may not see it" in gpu_instruments([{}], ["GPU-a", "GPU-x"]).missing["GPU 'GPU-x'"]


def test_numbers_of_unlike_gpus_may_mean_another_gpu_to_cuda(libraries: Any) -> None:
    libraries(FakeNvml([FakeGpu("GPU-a", "T4"), FakeGpu("GPU-b", "H100")]))
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in gpu_instruments([{VISIBLE: "1"}]).missing["numbers of the GPUs"]
    assert not gpu_instruments([{VISIBLE: "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}]).missing
    assert not gpu_instruments([{VISIBLE: "GPU-b"}]).missing


def test_gpus_of_amd(libraries: Any) -> None:
    smi = FakeAmdSmi([FakeAmdGpu("0x1A"), FakeAmdGpu("0x2B", watts=0, ticks_per_reading=0), FakeAmdGpu("0x3C", "N/A")])
    libraries(None, smi)
    result = sampled(5)
    assert result.facts["gpu0"] == "Fake MI250X, GPU-1a, 64 GB"
    assert result.quantities["gpu0_power_w"].mean == pytest.approx(300)
    assert result.quantities["gpu1_utilization_percent"].mean == 70
    assert result.quantities["gpu1_memory_gb"].mean == 16
    assert result.missing == dict.fromkeys(("gpu1_power_w", "gpu2_power_w"), "the driver reports no power for it")
    assert [use.source for use in result.energy] == ["gpu0", "gpu2"]
    # A million ticks of 15.3 microjoules each; the first reading is to see whether there is a counter.
    assert result.energy[0].joules == pytest.approx((smi.gpus[0].ticks - 2_000_000) * 15.3e-6)
    assert smi.open == 0
    chosen = gpu_instruments([{"ROCR_VISIBLE_DEVICES": "GPU-3c,GPU-1a", "HIP_VISIBLE_DEVICES": "1"}])
    assert chosen.facts["gpu0"].startswith("Fake MI250X, GPU-1a")
