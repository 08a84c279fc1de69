"""What is said about the system holds: advice only with figures behind it, parts of a run named as parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itwinai.monitoring.energy import EnergyUse
from itwinai.monitoring.monitor_summary import MonitorSummary, NodeSummary
from itwinai.monitoring.system_sampler import Sampled, SamplingCost
from itwinai.monitoring.time_series import Quantity
from itwinai.reporting.sections.system import system_sections
from itwinai.reporting.sections.system_recommendations import advice

COST = SamplingCost(samples=100, cpu_seconds=0.1, opening_seconds=0.0, seconds=100.0)


def quantity(mean: float, peak: float | None = None, samples: int = 100) -> Quantity:
    return Quantity(mean, mean if peak is None else peak, samples, 100.0, ((0.0, mean), (100.0, mean)))


def node(
    name: str = "node", *, energy: tuple[EnergyUse, ...] = (), missing: Any = None, **quantities: Any
) -> NodeSummary:
    known: Mapping[str, Quantity] = {
        name: value if isinstance(value, Quantity) else quantity(value) for name, value in quantities.items()
    }
    return NodeSummary(name, 1, Sampled(known, energy, missing or {}, {"cores": "8"}, COST))


def of(*nodes: NodeSummary, **options: Any) -> MonitorSummary:
    return MonitorSummary(nodes, 100.0, **{"batches": 10, "samples": 1000, **options})


GOOD = {
    "cpu_percent": 60.0,
    "running_processes": 4.0,
    "node_memory_percent": quantity(60.0, 89.0),
    "gpu0_utilization_percent": 95.0,
    "gpu1_utilization_percent": 30.0,
}


def test_nothing_to_advise() -> None:
    assert advice(of(node(**GOOD))) == []
    assert advice(of(node())) == []
    full = GOOD | {"cpu_percent": 99.0, "running_processes": 7.9}  # as many as there are cores
    assert advice(of(node(**full))) == []
    queued = GOOD | {"cpu_percent": 60.0, "running_processes": 12.0}  # they wait, but not for a core
    assert advice(of(node(**queued))) == []


def test_idle_gpus() -> None:
    idle = GOOD | {"gpu0_utilization_percent": 40.0}
    (sentence,) = advice(of(node(**idle)))
    assert "35 % of the time (gpu0 40 %, gpu1 30 %)" in sentence
    assert "the CPU was 60 % busy" in sentence
    (sentence,) = advice(of(node(**idle | {"cpu_percent": 97.0})))
    assert "the CPU is the limit, with 97 %" in sentence
    few = {name: quantity(10.0, samples=2) for name in ("gpu0_utilization_percent", "gpu1_utilization_percent")}
    assert advice(of(node(**GOOD | few))) == []  # nothing follows from two samples


def test_full_memory() -> None:
    (sentence,) = advice(of(node(**GOOD | {"node_memory_percent": quantity(50.0, 94.0), "memory_gb": 30.0})))
    assert "94 % full at most, 30.0 GB of it by this run" in sentence


def test_more_processes_than_cores() -> None:
    (sentence,) = advice(of(node(**GOOD | {"cpu_percent": 99.0, "running_processes": 11.5})))
    assert "11.5 processes of this run wanted to run at once on 8 cores, which were 99 % busy" in sentence


def test_energy_that_covers_a_part_of_the_run_says_so() -> None:
    uses = (EnergyUse("gpu0", 3600.0, 40.0, "counter"), EnergyUse("CPU package 0", 7200.0, 99.5, "counter"))
    (section,) = system_sections(of(node(energy=uses)))
    assert section.facts["energy"] == "3 Wh (GPUs: 1 Wh, CPU packages of all processes: 2 Wh)"
    assert section.facts["energy per sample"] == "10.8 J, validation included"
    assert section.missing == ["energy of gpu0: only 40 s of 100 s are covered"]


def test_several_nodes() -> None:
    names = [f"n{number}" for number in range(6)]
    nodes = [node(name, cpu_percent=50.0, memory_gb=float(number)) for number, name in enumerate(names)]
    nodes[1] = node("n1", missing={"a": "why", "b": "why"}, cpu_percent=50.0)
    (section,) = system_sections(of(*nodes))
    assert section.facts["CPU"] == "50 % of 8 + 8 + 8 + 8 + 8 + 8 cores on average"
    assert section.facts["memory"] == "5.00 GB at most on a node"
    assert section.facts["energy"] == "not measured"
    assert "n1: a, b: why" in section.missing
    assert "pictures of 2 nodes: only those of the first 4 are drawn" in section.missing
    assert [table.title.split()[0] for table in section.tables] == names
