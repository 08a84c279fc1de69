"""The model of a step: formulas, limits, the course of events, the command, and what is measured with real workers."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import get_args

import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from itwinai.benchmark.record_file import RECORDS, append_measurement, write_head
from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Breakdown, Cell, Measurement, Scaling
from itwinai.benchmark.simulate import (
    Cores,
    Layer,
    Link,
    Prediction,
    StrategyModel,
    Topology,
    Workload,
    simulate,
    units,
)
from itwinai.benchmark.simulate.collectives import (
    Algorithm,
    all_gather,
    all_reduce,
    double_tree,
    reduce_scatter,
    ring,
)
from itwinai.benchmark.simulate.explain import CAUSES, bottleneck, conclusion
from itwinai.benchmark.simulate.measured_links import MeasuredLinks, Timing, fit_link, write_links
from itwinai.benchmark.simulate.network_benchmark import time_all_reduces
from itwinai.benchmark.simulate.overlap import Overlap, Task, buckets_of, communicate, parts_of, schedule
from itwinai.benchmark.simulate.prediction import expected_maximum, model_memory, waiting_time
from itwinai.benchmark.simulate.strategy_models import STRATEGIES, strategy_model
from itwinai.cli import benchmark_simulate
from itwinai.errors import ConfigurationError
from itwinai.launchers.cpu_affinity import own_cores, quota
from itwinai.launchers.local import free_port, loopback_interface
from tests.benchmark.synthetic import made_up

MIB = 2**20
FAST = Link(0.0, math.inf)
SLOW = Link(1e-3, 1e9)
NODES = Topology(4, Link(1e-6, 100e9), Link(10e-6, 10e9))
WORK = Workload(compute=0.12, gradient_bytes=100e6, batch=4096, parameters=25_000_000)


def predict(
    workload: Workload, topology: Topology, model: StrategyModel, workers: int, scaling: Scaling = "strong"
) -> Prediction:
    return simulate(workload, topology, model, [workers], scaling)[0]


# --- collective operations ---


def test_ring_and_trees_take_what_their_formulas_say() -> None:
    assert ring(1e9, 4, SLOW).total == pytest.approx(6e-3 + 1.5)
    assert ring(1e9, 2, SLOW).total == pytest.approx(2e-3 + 1.0)
    assert double_tree(1e9, 4, SLOW).total == pytest.approx(4e-3 + 2.0)
    assert double_tree(1e9, 5, SLOW).latency == pytest.approx(6e-3), "three levels hold five to eight workers"


def test_reduce_scatter_and_all_gather_are_halves_of_a_ring() -> None:
    flat = Topology.flat(SLOW)
    for operation in (reduce_scatter, all_gather):
        for algorithm in ("ring", "tree"):  # no tree scatters a sum
            assert operation(1e9, 8, flat, algorithm).total == pytest.approx(ring(1e9, 8, SLOW).total / 2)


def test_a_ring_over_nodes_waits_for_its_slowest_link() -> None:
    assert all_reduce(1e9, 8, NODES, "ring") == ring(1e9, 8, Link(10e-6, 10e9))
    assert all_reduce(1e9, 4, NODES, "ring") == ring(1e9, 4, Link(1e-6, 100e9)), "one node"
    upside_down = Topology(4, Link(10e-6, 10e9), Link(1e-6, 100e9))
    assert all_reduce(1e9, 8, upside_down, "ring") == ring(1e9, 8, Link(10e-6, 10e9))


def test_a_hierarchy_sends_a_share_of_the_bytes_between_nodes() -> None:
    within, between = ring(1e9, 4, Link(1e-6, 100e9)), ring(0.25e9, 2, Link(10e-6, 10e9))
    assert all_reduce(1e9, 8, NODES, "hierarchical").total == pytest.approx(within.total + between.total)
    assert reduce_scatter(1e9, 8, NODES, "hierarchical").total == pytest.approx((within.total + between.total) / 2)


def test_the_best_algorithm_is_the_fastest_for_the_bytes() -> None:
    algorithms: tuple[Algorithm, ...] = ("ring", "tree", "hierarchical")
    chosen = set()
    for size in (1e3, 1e5, 1e7, 1e9):
        for workers in (2, 16, 512):
            times = {name: all_reduce(size, workers, NODES, name).total for name in algorithms}
            assert all_reduce(size, workers, NODES, "best").total == min(times.values())
            chosen.add(min(times, key=lambda name: times[name]))
    assert len(chosen) > 1, "no single one is best for all"


@pytest.mark.parametrize("algorithm", ["ring", "tree", "hierarchical", "best"])
def test_one_worker_has_nothing_to_exchange(algorithm: Algorithm) -> None:
    for operation in (all_reduce, reduce_scatter, all_gather):
        assert operation(1e9, 1, NODES, algorithm).total == 0


def test_unknown_algorithms_and_links_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="no algorithm 'star'"):
        all_reduce(1.0, 2, NODES, "star")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="the link between nodes is not known"):
        all_reduce(1.0, 5, Topology(4, SLOW), "ring")


# --- the course of a step ---


def test_exchanges_start_when_gradients_are_ready_and_the_one_before_has_ended() -> None:
    """Backward takes 6 s, gradients are ready at 2, 4 and 6, and an exchange takes 3 s: 2-5, 5-8, 8-11."""
    backward = [Task(2.0, after=3.0)] * 3
    assert schedule([backward], StrategyModel()) == Overlap(exposed=5.0, hidden=4.0)
    # Short exchanges leave the lane idle in between: 2-3, 4-5, 6-7.
    assert schedule([[Task(2.0, after=1.0)] * 3], StrategyModel()) == Overlap(exposed=1.0, hidden=2.0)
    assert schedule([backward], StrategyModel(overlap=False)) == Overlap(exposed=9.0, hidden=0.0)


def test_sharded_parameters_are_gathered_ahead_and_gradients_scattered_behind() -> None:
    """Two parts; gathering takes 1 s, scattering 2 s, forward 1 s each, backward 2 s each.

    Gathered 0-1, 1-2, computed 1-2, 2-3; in backward gathered 3-4, 4-5, computed 4-6, 6-8, scattered 6-8, 8-10.
    """
    step = [[Task(1.0, before=1.0)] * 2, [Task(2.0, before=1.0, after=2.0)] * 2]
    assert schedule(step, StrategyModel()) == Overlap(exposed=4.0, hidden=4.0)
    # One thing after the other: 4 gatherings, 2 scatterings.
    assert schedule(step, StrategyModel(overlap=False)) == Overlap(exposed=8.0, hidden=0.0)
    # Gathered when they are needed; scattered meanwhile: 7-8 gathered, 8-10 scattered and computed, 10-12 scattered.
    assert schedule(step, StrategyModel(prefetch=False)) == Overlap(exposed=6.0, hidden=2.0)
    # Backward begins with the last part. Gathered 0-1, 1-4 in forward, which takes no time; gathered 4-7, 7-8, computed
    # 7-10, 10-11, scattered 10-16, 16-18.
    first = [Task(0.0, before=1.0), Task(0.0, before=3.0)]
    uneven = [first, [Task(3.0, before=3.0, after=6.0), Task(1.0, before=1.0, after=2.0)]]
    assert schedule(uneven, StrategyModel()) == Overlap(exposed=14.0, hidden=2.0)


def test_the_first_bucket_is_small_and_no_byte_is_lost() -> None:
    workload = Workload(1.0, 60 * MIB)
    buckets = buckets_of(workload, StrategyModel())
    assert [bucket.size / MIB for bucket in buckets] == [1, 25, 25, 9]
    assert [bucket.share for bucket in buckets] == [pytest.approx(size / 60) for size in (1, 25, 25, 9)]
    assert [part.size / MIB for part in parts_of(workload, StrategyModel())] == [25, 25, 10]


def test_layers_come_from_the_last_one_and_are_not_divided() -> None:
    """The last layer has most bytes and little time, as that of a convolutional network."""
    layers = (Layer(2 * MIB, 6), Layer(24 * MIB, 3), Layer(40 * MIB, 1))
    workload = Workload(1.0, 66 * MIB, layers=layers)
    buckets = buckets_of(workload, StrategyModel())
    assert [(bucket.size / MIB, bucket.share) for bucket in buckets] == [
        (40, pytest.approx(0.1)),
        (26, pytest.approx(0.9)),
    ]
    small = buckets_of(workload, StrategyModel(bucket_bytes=MIB))
    assert [(bucket.size / MIB, bucket.share) for bucket in small] == [
        (40, pytest.approx(0.1)),
        (24, pytest.approx(0.3)),
        (2, pytest.approx(0.6)),
    ]
    equal = Workload(1.0, 8 * MIB, layers=(Layer(2 * MIB),) * 4)
    assert [bucket.size / MIB for bucket in buckets_of(equal, StrategyModel())] == [2, 6], "the first bucket is small"
    assert [(part.size / MIB, part.share) for part in parts_of(workload, StrategyModel())] == [
        (2, 0.6),
        (24, 0.3),
        (40, 0.1),
    ]
    # Early bytes are exchanged beside the rest of backward.
    spread = predict(dataclasses.replace(workload, layers=()), Topology.flat(Link(0, 1e9)), StrategyModel(), 2, "weak")
    early = predict(workload, Topology.flat(Link(0, 1e9)), StrategyModel(), 2, "weak")
    assert early.exposed < spread.exposed or early.exposed == pytest.approx(26 * MIB / 1e9)


def test_layers_that_are_not_all_of_them_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="Give all layers"):
        Workload(1.0, 66 * MIB, layers=(Layer(2 * MIB),))


# --- waiting for the slowest ---


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, 0.0),
        (2, 1 / math.sqrt(math.pi)),
        (3, 1.5 / math.sqrt(math.pi)),
        # Harter, "Expected values of normal order statistics", Biometrika 1961.
        (10, 1.53875),
        (100, 2.50759),
        (400, 2.96818),
    ],
)
def test_expected_maximum_of_normal_values(number: int, expected: float) -> None:
    assert expected_maximum(number) == pytest.approx(expected, abs=2e-5)


def test_waiting_grows_with_variation_and_workers_and_evens_out_over_batches() -> None:
    assert waiting_time(2.0, 0.1, 2) == pytest.approx(0.2 / math.sqrt(math.pi))
    assert waiting_time(2.0, 0.1, 2, batches=4) == pytest.approx(0.1 / math.sqrt(math.pi))
    assert waiting_time(2.0, 0.0, 4096) == 0 == waiting_time(2.0, 0.1, 1)
    varying = dataclasses.replace(WORK, variation=0.1)
    assert predict(varying, NODES, StrategyModel(), 2, "weak").waiting == pytest.approx(0.012 / math.sqrt(math.pi))


# --- memory ---


def test_memory_of_the_stages_is_that_of_the_paper() -> None:
    """Figure 1 of Rajbhandari et al.: 7.5 billion parameters on 64 workers take 120, 31.4, 16.6 and 1.9 GB."""
    totals = [model_memory(7_500_000_000, 64, stage, "mixed") / 1e9 for stage in range(4)]
    assert totals == [pytest.approx(expected, abs=0.06) for expected in (120, 31.4, 16.6, 1.9)]
    assert model_memory(1000, 4, 0) == 16_000
    assert model_memory(1000, 4, 3) == 4000
    with pytest.raises(ConfigurationError, match="no precision 'int8'"):
        model_memory(1, 1, 0, "int8")  # type: ignore[arg-type]


# --- predictions ---


def test_one_worker_takes_what_was_measured() -> None:
    workload = dataclasses.replace(WORK, optimizer=0.01, other=0.02, variation=0.1, cores=Cores(2, 2))
    for stage in range(4):
        alone = predict(workload, NODES, StrategyModel(stage=stage), 1)
        assert alone.step == pytest.approx(0.15) and alone.speedup == pytest.approx(1.0)
        assert alone.exposed == alone.hidden == alone.waiting == 0


@pytest.mark.parametrize("stage", range(4))
def test_links_without_limits_make_scaling_ideal(stage: int) -> None:
    for workers in (2, 64, 4096):
        one = predict(WORK, Topology(4, FAST, FAST), StrategyModel(stage=stage), workers)
        assert one.exposed == 0 and one.efficiency == pytest.approx(1.0)
        assert one.throughput == pytest.approx(4096 * workers / 0.12)


def test_a_long_backward_hides_all_but_the_last_bucket() -> None:
    workload = dataclasses.replace(WORK, compute=100.0)
    one = predict(workload, NODES, StrategyModel(algorithm="ring"), 8, "weak")
    buckets = buckets_of(workload, StrategyModel())
    costs = [ring(bucket.size, 8, Link(10e-6, 10e9)).total for bucket in buckets]
    assert one.exposed == pytest.approx(costs[-1])
    assert one.hidden == pytest.approx(sum(costs[:-1]))
    forward = dataclasses.replace(workload, backward_share=0.0)
    assert predict(forward, NODES, StrategyModel(algorithm="ring"), 8, "weak").hidden == 0, (
        "nothing is ready in forward"
    )
    after = predict(workload, NODES, StrategyModel(algorithm="ring", overlap=False), 8, "weak")
    assert after.hidden == 0 and after.exposed == pytest.approx(sum(costs))


def test_stages_exchange_the_bytes_of_the_paper() -> None:
    """As many as an all-reduce with stages 1 and 2, and 1.5 times as many with stage 3."""
    flat = Topology.flat(Link(0.0, 1e9))
    transfers = [
        communicate(WORK, flat, StrategyModel(stage=stage, algorithm="ring"), 8, 0.12)[1] for stage in range(4)
    ]
    whole = ring(100e6, 8, Link(0.0, 1e9)).transfer
    assert [cost.transfer / whole for cost in transfers] == [pytest.approx(ratio) for ratio in (1, 1, 1, 1.5)]


def test_stages_divide_the_optimizer() -> None:
    workload = dataclasses.replace(WORK, optimizer=0.08)
    optimizers = [predict(workload, NODES, StrategyModel(stage=stage), 8).optimizer for stage in range(4)]
    assert optimizers == [pytest.approx(0.08), *[pytest.approx(0.01)] * 3]


def test_accumulation_exchanges_less_often_where_gradients_are_kept() -> None:
    workload = dataclasses.replace(WORK, optimizer=0.08, variation=0.1)
    often, seldom = (predict(workload, NODES, StrategyModel(accumulate=number), 64) for number in (1, 4))
    assert seldom.exposed == pytest.approx(often.exposed / 4) and seldom.optimizer == pytest.approx(0.02)
    assert seldom.waiting == pytest.approx(often.waiting / 2)
    flat = Topology.flat(Link(0.0, 1e9))
    total = ring(100e6, 8, Link(0.0, 1e9)).transfer
    costs = [
        communicate(WORK, flat, StrategyModel(stage=stage, algorithm="ring", accumulate=4), 8, 0.12)[1].transfer / total
        for stage in range(4)
    ]
    # Stage 2 scatters the gradients of each batch, and gathers the parameters once.
    assert costs == [pytest.approx(ratio) for ratio in (1 / 4, 1 / 4, 1 / 2 + 1 / 8, 1.5)]


def test_a_batch_is_divided_evenly_or_waits_for_the_worker_with_more() -> None:
    workload = dataclasses.replace(WORK, batch=10)
    even, uneven = (predict(workload, Topology(4, FAST, FAST), StrategyModel(), workers) for workers in (5, 4))
    assert even.compute == pytest.approx(0.12 / 5) and even.losses["uneven batch"] == 0
    assert uneven.compute == pytest.approx(0.12 * 3 / 10)
    assert uneven.losses["uneven batch"] == pytest.approx(0.12 * (3 / 10 - 1 / 4))
    with pytest.raises(ConfigurationError, match="10 samples cannot be divided among 11"):
        predict(workload, NODES, StrategyModel(), 11)
    assert predict(workload, NODES, StrategyModel(), 11, "weak").samples == 110


def test_workers_share_the_cores_of_their_node() -> None:
    """Four workers of one thread on two cores take twice the time; so do two that had both cores alone."""
    single, both = (dataclasses.replace(WORK, cores=Cores(2, threads)) for threads in (1, 2))
    free = Topology(4, FAST, FAST)
    assert [predict(single, free, StrategyModel(), n, "weak").compute / 0.12 for n in (1, 2, 4, 8)] == [1, 1, 2, 2]
    assert [predict(both, free, StrategyModel(), n, "weak").compute / 0.12 for n in (1, 2, 4, 8)] == [1, 2, 4, 4]


def test_hiding_gains_nothing_on_cores_that_are_all_busy() -> None:
    links = Topology(8, Link(0.0, 1e9))
    plain = predict(WORK, links, StrategyModel(), 2, "weak")
    busy, spare, gpu = (
        predict(dataclasses.replace(WORK, cores=cores), links, StrategyModel(), 2, "weak")
        for cores in (Cores(2, 1), Cores(4, 1), Cores(2, 1, communicating=False))
    )
    assert plain.hidden > 0 and spare == dataclasses.replace(plain, losses=spare.losses) and gpu.hidden == plain.hidden
    assert busy.hidden == 0 and busy.exposed == pytest.approx(plain.exposed + plain.hidden)
    # Half of the workers find a core for their communication.
    assert Cores(3, 1).cost_of_hiding(2) == pytest.approx(2 / 3 / 2)
    assert Cores(64, 64).cost_of_hiding(1) == pytest.approx(1 / 64)


WORKLOADS = st.builds(
    Workload,
    compute=st.floats(1e-3, 10),
    gradient_bytes=st.floats(1e4, 1e9),
    batch=st.one_of(st.none(), st.integers(4096, 100_000)),
    optimizer=st.floats(0, 0.1),
    other=st.floats(0, 0.1),
    variation=st.floats(0, 0.3),
    backward_share=st.floats(0, 1),
    cores=st.one_of(st.none(), st.builds(Cores, st.floats(1, 64), st.integers(1, 64))),
)
LINKS = st.builds(Link, st.floats(0, 1e-3), st.floats(1e7, 1e12))
TOPOLOGIES = st.builds(Topology, st.integers(1, 16), LINKS, LINKS)
MODELS = st.builds(
    StrategyModel,
    stage=st.integers(0, 3),
    algorithm=st.sampled_from(["ring", "tree", "hierarchical", "best"]),
    overlap=st.booleans(),
    prefetch=st.booleans(),
    bucket_bytes=st.floats(1e6, 1e8),
    accumulate=st.integers(1, 8),
)
SCALINGS = st.sampled_from(["strong", "weak"])
WORKERS = st.integers(1, 4096)


@given(WORKLOADS, TOPOLOGIES, MODELS, WORKERS, SCALINGS)
def test_losses_add_up_to_the_difference_from_ideal_scaling(
    workload: Workload, topology: Topology, model: StrategyModel, workers: int, scaling: Scaling
) -> None:
    one, alone = (predict(workload, topology, model, number, scaling) for number in (workers, 1))
    ideal = alone.step / (workers if scaling == "strong" else 1)
    assert sum(one.losses.values()) == pytest.approx(one.step - ideal, abs=1e-9 * one.step)
    assert one.losses.keys() == CAUSES.keys()
    assert one.efficiency == pytest.approx(ideal / one.step)
    assert one.exposed >= 0 and one.hidden >= 0


@given(WORKLOADS, TOPOLOGIES, MODELS, WORKERS, SCALINGS, st.floats(1, 100))
def test_faster_links_are_never_slower(
    workload: Workload, topology: Topology, model: StrategyModel, workers: int, scaling: Scaling, factor: float
) -> None:
    assert topology.between is not None
    better = dataclasses.replace(
        topology,
        within=Link(topology.within.latency / factor, topology.within.bandwidth),
        between=Link(topology.between.latency, topology.between.bandwidth * factor),
    )
    slow, fast = (predict(workload, joined, model, workers, scaling).step for joined in (topology, better))
    assert fast <= slow * (1 + 1e-9)


@given(WORKLOADS, TOPOLOGIES, MODELS, WORKERS, SCALINGS)
def test_communication_is_either_exposed_or_hidden_and_overlap_is_never_slower(
    workload: Workload, topology: Topology, model: StrategyModel, workers: int, scaling: Scaling
) -> None:
    one = predict(workload, topology, dataclasses.replace(model, overlap=True), workers, scaling)
    after = predict(workload, topology, dataclasses.replace(model, overlap=False), workers, scaling)
    assert one.step <= after.step * (1 + 1e-9) and after.hidden == pytest.approx(0, abs=1e-9 * after.step)
    assert one.exposed + one.hidden == pytest.approx(after.exposed, rel=1e-6, abs=1e-12)


@given(WORKLOADS, LINKS, st.integers(0, 11))
def test_weak_scaling_never_gains_from_more_workers(workload: Workload, link: Link, exponent: int) -> None:
    flat, model = Topology.flat(link), StrategyModel(algorithm="ring")
    few, many = (predict(workload, flat, model, 2**power, "weak") for power in (exponent, exponent + 1))
    assert many.step >= few.step * (1 - 1e-9) and many.efficiency <= 1 + 1e-9


def test_names_of_strategies() -> None:
    options = StrategyModel(bucket_bytes=1e6)
    stages = {
        name: strategy_model(name, options).stage for name in ("ddp", "horovod", "ray", "deepspeed", "zero1", "fsdp")
    }
    assert stages == {"ddp": 0, "horovod": 0, "ray": 0, "deepspeed": 2, "zero1": 1, "fsdp": 3}
    assert strategy_model("zero3", options) == StrategyModel("zero3", 3, bucket_bytes=1e6)
    assert (
        not strategy_model("deepspeed_stage_1", options).overlap
        and strategy_model("deepspeed_stage_3", options).overlap
    )
    with pytest.raises(ConfigurationError, match="'horovd'.* mean 'horovod'"):
        strategy_model("horovd", options)


# --- sentences ---


@pytest.mark.parametrize(
    ("change", "link", "cause"),
    [
        ({}, Link(1e-3, 1e12), "latency"),
        ({}, Link(0.0, 1e9), "bandwidth"),
        ({"variation": 0.5}, FAST, "stragglers"),
        ({"optimizer": 0.05}, FAST, "optimizer"),
        ({"other": 0.05}, FAST, "other"),
        ({"batch": 65}, FAST, "uneven batch"),
        ({"cores": Cores(1, 1)}, FAST, "cores"),
    ],
)
def test_what_binds_is_named(change: dict[str, object], link: Link, cause: str) -> None:
    workload = dataclasses.replace(WORK, **change)  # type: ignore[arg-type]
    predictions = simulate(workload, Topology(64, link), StrategyModel(), [1, 64])
    assert bottleneck(predictions[1])[0] == cause
    said = conclusion(predictions)
    assert CAUSES[cause] in said and "up to 1 worker;" in said and f"{predictions[1].efficiency:.0%} with 64" in said


def test_what_scales_well_is_said_to() -> None:
    assert "100% efficiency with 64 workers" in conclusion(simulate(WORK, Topology(64, FAST), StrategyModel(), [1, 64]))


# --- units ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100MB", 1e8),
        ("25MiB", 25 * MIB),
        (" 1.5 GB ", 1.5e9),
        ("1e6", 1e6),
        ("64KiB", 65536),
        ("7B", 7),
        (".5kB", 500),
    ],
)
def test_sizes(text: str, expected: float) -> None:
    assert units.size_in_bytes(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("5us", 5e-6), ("5µs", 5e-6), ("120 ms", 0.12), ("0.12", 0.12), ("2min", 120), ("7ns", 7e-9)]
)
def test_times(text: str, expected: float) -> None:
    assert units.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("25GB/s", 25e9), ("200Gbit/s", 25e9), ("200Gb/s", 25e9), ("200Gbps", 25e9), ("1GiB/s", 2**30)],
)
def test_bandwidths(text: str, expected: float) -> None:
    assert units.bytes_per_second(text) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "expected"), [("25M", 25_000_000), ("1.3B", 1_300_000_000), ("64", 64), ("4k", 4000)])
def test_numbers(text: str, expected: int) -> None:
    assert units.number(text) == expected


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (units.size_in_bytes, "100mb", "Did you mean 100MB"),
        (units.size_in_bytes, "much", "'much' is not a size"),
        (units.size_in_bytes, "-3MB", "is not a size"),
        (units.size_in_bytes, "3Mbit", "unknown unit 'Mbit'"),
        (units.seconds, "5m", "unknown unit 'm'"),
        (units.seconds, "5MS", "Did you mean 5ms"),
        (units.seconds, "", "is not a time"),
        (units.bytes_per_second, "25gb/s", "Did you mean 25GB/s or 25Gb/s"),
        (units.bytes_per_second, "25", "has no unit"),
        (units.number, "1.5", "not a whole number"),
        (units.number, "3x", "unknown unit 'x'"),
    ],
)
def test_invalid_amounts_are_errors(read: object, text: str, message: str) -> None:
    assert callable(read)
    with pytest.raises(ConfigurationError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,4", [1, 2, 4]),
        ("4, 2,2", [2, 4]),
        ("1,2,4,...,64", [1, 2, 4, 8, 16, 32, 64]),
        ("1,2,...,8", [1, 2, 4, 8]),
        ("3,6,...,12", [3, 6, 12]),
        ("1,2,3,...,6", [1, 2, 3, 4, 5, 6]),
        ("4,6,…,10", [4, 6, 8, 10]),
    ],
)
def test_numbers_of_workers(text: str, expected: list[int]) -> None:
    assert units.numbers_of_workers(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,...,4", "1,2,...", "1,2,...,7", "4,2,...,8", "2,2,...,4", "-1"])
def test_invalid_numbers_of_workers_are_errors(text: str) -> None:
    with pytest.raises(ConfigurationError):
        units.numbers_of_workers(text)


# --- the command ---

BY_FLAGS = ["--compute", "120ms", "--gradients", "100MB"]
LINK_FLAGS = ["--latency", "5us", "--bandwidth", "25GB/s"]


def test_the_command_shows_what_the_model_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "table.csv", tmp_path / "pictures" / "picture.svg"
    flags = [*BY_FLAGS, "--parameters", "25M", "--batch", "4096", "--variation", "0.02", "--workers-per-node", "4"]
    flags += ["--latency", "1us", "--bandwidth", "100GB/s", "--node-latency", "10us", "--node-bandwidth", "10GB/s"]
    flags += ["--strategies", "ddp,deepspeed_stage_2,zero3", "--csv", str(table), "--picture", str(picture)]
    assert benchmark_simulate.simulate(flags) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 100
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 3 * 13
    varying = dataclasses.replace(WORK, variation=0.02)
    expected = predict(varying, NODES, StrategyModel("zero3", 3), 64)
    (row,) = [row for row in rows if row["strategy"] == "zero3" and row["workers"] == "64"]
    assert float(row["step"]) == pytest.approx(expected.step) and float(row["memory"]) == 16 * 25e6 / 64
    assert float(row["lost_to_bandwidth"]) == pytest.approx(expected.losses["bandwidth"])
    assert "Simulated, not measured" in printed and "This is a model, which assumes" in printed
    assert conclusion(simulate(varying, NODES, StrategyModel(), [2**n for n in range(13)]))[:60] in printed
    assert picture.read_text().startswith("<svg") and "zero3" in picture.read_text()


def test_unknown_values_are_not_shown_as_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_simulate.simulate([*BY_FLAGS, *LINK_FLAGS, "--workers", "2"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("2 ")]
    assert row.split()[-2:] == ["-", "-"]


def test_numbers_that_the_batch_does_not_allow_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*BY_FLAGS, *LINK_FLAGS, "--batch", "48"]
    assert benchmark_simulate.simulate(flags) == 0
    printed = capsys.readouterr().out
    assert "No more than 48 workers: with strong scaling, each needs one of the 48" in printed
    assert " 32 " in printed and " 64 " not in printed
    with pytest.raises(ConfigurationError, match="cannot be divided among 64"):
        benchmark_simulate.simulate([*flags, "--workers", "64"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Describe one worker"),
        (["--compute", "1s", *LINK_FLAGS], "How large are the gradients"),
        (BY_FLAGS, "itwinai benchmark links"),
        ([*BY_FLAGS, "--latency", "5us"], "--latency and --bandwidth"),
        ([*BY_FLAGS, *LINK_FLAGS, "--node-latency", "5us", "--node-bandwidth", "1GB/s"], "--workers-per-node"),
        ([*BY_FLAGS, *LINK_FLAGS, "--links", "links.json"], "Give one of them"),
        ([*BY_FLAGS, *LINK_FLAGS, "--from", "folder"], "--compute and --from"),
        ([*BY_FLAGS, *LINK_FLAGS, "--threads", "2"], "--threads needs --cores"),
        ([*BY_FLAGS, *LINK_FLAGS, "--axis", "a=b"], "--from"),
        ([*BY_FLAGS, *LINK_FLAGS, "--strategies", "dpd"], "mean 'ddp'"),
        ([*BY_FLAGS, *LINK_FLAGS, "--picture", "picture.gif"], ".svg or .png"),
        ([*BY_FLAGS, *LINK_FLAGS, "--accumulate", "0"], "accumulate must be at least 1"),
        ([*BY_FLAGS, *LINK_FLAGS, "--workers-per-node", "4", "--workers", "8"], "between nodes"),
        (["--from", "no/such/folder", *LINK_FLAGS], "no benchmark in no/such/folder"),
    ],
)
def test_invalid_flags_are_errors(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        benchmark_simulate.simulate(flags)


def test_amounts_without_their_unit_are_errors_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_simulate.simulate([*BY_FLAGS, "--latency", "5us", "--bandwidth", "25gb/s"])
    assert "Did you mean 25GB/s or 25Gb/s" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark_simulate.simulate([*BY_FLAGS, *LINK_FLAGS, "--layers", "1MB:heavy"])
    assert "'heavy' is not a weight" in capsys.readouterr().err


# --- from a benchmark ---


def recorded(
    folder: Path, device: str = "NVIDIA A100", slower: float = 1.0, threads: int = 0, optimizer: float | None = None
) -> tuple[Workload, Topology]:
    """Write a benchmark that follows the model, with steps of several workers that are so much slower.

    DeepSpeed is 1.5 times as slow as all that, also with one worker.
    """
    workload = Workload(0.08, 4e6, 64, 1_000_000, other=0.02, variation=0.2 / 1.6448536)
    topology = Topology.flat(Link(1e-4, 1e9))
    record = BenchmarkRecord("model")
    write_head(record, folder)
    cells = [
        Cell("fancy", 2),
        Cell("fancy", 1),
        Cell("deepspeed_stage_3", 2),
        Cell("deepspeed_stage_3", 1),
        Cell(SINGLE, 1),
        *(Cell("ddp", n, scaling) for n in (4, 2) for scaling in get_args(Scaling)),
        Cell("ddp", 2, axes=(("a.b", "c"),)),
    ]
    for cell in cells:
        for repeat in range(3):
            known = cell.strategy in STRATEGIES and cell.workers > 1
            own = heavier(workload, 1.5) if cell.strategy == "deepspeed_stage_3" else workload
            model = strategy_model(cell.strategy if known else "ddp", StrategyModel())
            step = predict(own, topology, model, cell.workers, cell.scaling).step
            step *= slower if cell.workers > 1 else 1.0
            samples = 6400 * (cell.workers if cell.scaling == "weak" else 1)
            measured = made_up(step, cell.workers, samples=samples)
            assert isinstance(measured.breakdown, Breakdown)
            breakdown = dataclasses.replace(measured.breakdown, optimizer=optimizer)
            measured = dataclasses.replace(measured, device=device, threads=threads, breakdown=breakdown)
            append_measurement(Measurement(cell, repeat, "measured", 0.0, 1.0, measured), folder / RECORDS)
        append_measurement(Measurement(cell, 3, "failed", 0.0, 1.0, error="killed"), folder / RECORDS)
    return workload, topology


def heavier(workload: Workload, factor: float) -> Workload:
    return dataclasses.replace(workload, compute=factor * workload.compute, other=factor * workload.other)


def test_a_benchmark_is_predicted_from_its_single_worker_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workload, topology = recorded(tmp_path, slower=1.25)
    flags = ["--from", str(tmp_path), "--latency", "100us", "--bandwidth", "1GB/s", "--csv", str(tmp_path / "t.csv")]
    flags += ["--scaling", "strong"]
    assert benchmark_simulate.simulate([*flags, "--workers", "1,2,8"]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["strategy"] for row in rows] == ["ddp"] * 3 + ["deepspeed_stage_3"] * 3
    expected = [predict(workload, topology, StrategyModel(), workers).step for workers in (1, 2, 8)]
    assert [float(row["step"]) for row in rows[:3]] == [pytest.approx(step) for step in expected]
    assert float(rows[3]["step"]) == pytest.approx(1.5 * 0.1), "an engine's own worker counts where it was measured"
    assert "one worker: ddp: computes 80.0 ms" in printed and "deepspeed_stage_3: computes 120 ms" in printed
    compared = [line.split() for line in printed.splitlines() if line.endswith("%") and " ms " in line]
    assert [(words[0], words[1], words[2], words[-1]) for words in compared] == [
        ("ddp", "2", "strong", "-20%"),
        ("ddp", "4", "strong", "-20%"),
        ("ddp", "2", "weak", "-20%"),
        ("ddp", "4", "weak", "-20%"),
        ("deepspeed_stage_3", "2", "strong", "-20%"),
    ]
    assert "- fancy with 2: There is no model" in printed
    assert "- ddp with 2: one worker was not measured with the same settings" in printed
    assert "median 20%, largest 20%" in printed


def test_the_optimizer_is_what_was_measured_of_it(tmp_path: Path) -> None:
    workload, topology = recorded(tmp_path, optimizer=0.01)
    flags = ["--from", str(tmp_path), "--latency", "100us", "--bandwidth", "1GB/s", "--csv", str(tmp_path / "t.csv")]
    flags += ["--workers", "4", "--scaling", "strong", "--strategies", "ddp"]

    def step() -> float:
        (row,) = csv.DictReader((tmp_path / "t.csv").open())
        return float(row["step"])

    assert benchmark_simulate.simulate(flags) == 0
    measured = dataclasses.replace(workload, compute=0.07, optimizer=0.01)
    assert step() == pytest.approx(predict(measured, topology, StrategyModel(), 4).step)
    assert benchmark_simulate.simulate([*flags, "--optimizer", "20ms"]) == 0
    given = dataclasses.replace(workload, compute=0.06, optimizer=0.02)
    assert step() == pytest.approx(predict(given, topology, StrategyModel(), 4).step)


def test_parts_of_the_computing_time_that_no_worker_divides(tmp_path: Path) -> None:
    workload, topology = recorded(tmp_path)
    flags = ["--from", str(tmp_path), "--latency", "100us", "--bandwidth", "1GB/s", "--csv", str(tmp_path / "t.csv")]
    flags += ["--workers", "4", "--optimizer", "10ms", "--other", "20ms", "--strategies", "ddp", "--scaling", "strong"]
    assert benchmark_simulate.simulate(flags) == 0
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    divided = dataclasses.replace(workload, compute=0.05, optimizer=0.01, other=0.04)
    assert float(row["step"]) == pytest.approx(predict(divided, topology, StrategyModel(), 4).step)
    with pytest.raises(ConfigurationError, match="take 0.08 s together, but"):
        benchmark_simulate.simulate([*flags, "--other", "70ms"])


def test_workers_on_cpus_share_the_cores_that_the_links_were_measured_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workload, _ = recorded(tmp_path, device="CPU")
    with pytest.raises(ConfigurationError, match="--cores"):
        benchmark_simulate.simulate(["--from", str(tmp_path), *LINK_FLAGS])
    timings = [Timing(size, ring(size, 2, Link(1e-4, 1e9)).total) for size in (1024, 2**20, 2**26)]
    write_links(MeasuredLinks("gloo", "cpu", 2.0, 2, (fit_link(2, timings),)), tmp_path / "links.json")
    table = tmp_path / "t.csv"
    flags = ["--from", str(tmp_path), "--links", str(tmp_path / "links.json"), "--csv", str(table)]
    assert benchmark_simulate.simulate([*flags, "--strategies", "ddp", "--scaling", "weak"]) == 0
    rows = list(csv.DictReader(table.open()))
    assert [row["workers"] for row in rows] == ["1", "2"]
    assert float(rows[1]["compute"]) == pytest.approx(2 * workload.compute), "one worker had both cores"
    assert "2 threads on 2 cores" in capsys.readouterr().out


def test_a_worker_has_the_threads_that_it_was_measured_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workload, _ = recorded(tmp_path, device="CPU", threads=1)
    table = tmp_path / "t.csv"
    flags = ["--from", str(tmp_path), *LINK_FLAGS, "--cores", "2", "--csv", str(table), "--strategies", "ddp"]
    assert benchmark_simulate.simulate([*flags, "--scaling", "weak", "--workers", "2"]) == 0
    (row,) = csv.DictReader(table.open())
    assert float(row["compute"]) == pytest.approx(workload.compute), "each has a core"
    assert "1 thread on 2 cores" in capsys.readouterr().out


def test_a_benchmark_without_one_worker_says_what_to_do(tmp_path: Path) -> None:
    write_head(BenchmarkRecord("model"), tmp_path)
    append_measurement(Measurement(Cell("ddp", 2), 0, "measured", 0.0, 1.0, made_up(0.1, 2)), tmp_path / RECORDS)
    with pytest.raises(ConfigurationError, match="Add 1 to its --workers"):
        benchmark_simulate.simulate(["--from", str(tmp_path), *LINK_FLAGS])


# --- what is measured ---

_WIDTH, _LAYERS, _BATCH = 1024, 8, 96
_WORKERS = (1, 2, 4)
_ROUNDS = 4
_STEPS = 4


@pytest.mark.alone
def test_predictions_come_close_to_real_workers(
    tmp_path: Path, record_property: pytest.RecordProperty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of 8.4 million parameters, with 1, 2 and 4 workers of DDP, one thread each, weak scaling.

    The machine may have other work to do. So everything is measured in turn several times, one worker's time is that of
    its processor, and the cores of the others are those that were left to them in the same seconds. The bound is wide;
    but a model that forgets the communication, or that cores are shared, has to be worse.
    """
    from torch.multiprocessing.spawn import spawn

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", loopback_interface())
    spawn(_measure, (str(tmp_path / "measured.json"),), nprocs=max(_WORKERS))
    found = json.loads((tmp_path / "measured.json").read_text())

    links = []
    for workers, times in found["links"].items():
        timings = [Timing(int(size), median(seconds)) for size, seconds in times.items()]
        links.append((int(workers), fit_link(int(workers), timings).link))
    topology = Topology(max(_WORKERS), links[0][1], within_measured=tuple(links))
    alone = Workload(found["compute"], found["gradients"], optimizer=found["optimizer"])
    off: dict[str, list[float]] = {"model": [], "without communication": [], "without shared cores": []}
    for workers, link in links:
        ratios: dict[str, list[float]] = {name: [] for name in off}
        shares = []
        for step, cores in found["rounds"][str(workers)]:
            sharing = dataclasses.replace(alone, cores=Cores(cores, threads=1))
            whole = predict(sharing, topology, StrategyModel(algorithm="ring"), workers, "weak")
            shares.append(whole.exposed / whole.step)
            free = predict(sharing, Topology(max(_WORKERS), FAST), StrategyModel(), workers, "weak")
            each = predict(alone, topology, StrategyModel(algorithm="ring"), workers, "weak")
            for name, prediction in zip(off, (whole, free, each), strict=True):
                ratios[name].append(prediction.step / step)
        errors = {name: median(found_ratios) - 1 for name, found_ratios in ratios.items()}
        measured, left = (median(values) for values in zip(*found["rounds"][str(workers)], strict=True))
        told = (
            f"{1e3 * measured:.0f} ms measured, {median(shares):.0%} of it communication as predicted; "
            f"{left:.2f} cores; {link}; "
            f"errors: {', '.join(f'{name} {error:+.0%}' for name, error in errors.items())}"
        )
        print(f"{workers} workers: {told}")
        record_property(f"{workers} workers", told)
        for name, error in errors.items():
            off[name].append(abs(math.log(1 + error)))
        assert 1 / 1.6 < 1 + errors["model"] < 1.6, told
    assert sum(off["model"]) < sum(off["without communication"])
    assert sum(off["model"]) < sum(off["without shared cores"])


def _measure(rank: int, file: str) -> None:
    """Measure links and steps in turn, in one of the workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=max(_WORKERS))
    several = [number for number in _WORKERS if number > 1]
    sizes = (2**12, 2**16, 2**20, 2**22, 2**24, 2**25)
    links: dict[int, dict[int, list[float]]] = {number: {size: [] for size in sizes} for number in several}
    modules = {number: _module(number) for number in _WORKERS}
    cores = min(len(own_cores()), quota())
    alone: list[tuple[float, float]] = []
    rounds: dict[int, list[tuple[float, float]]] = {number: [] for number in several}
    for _ in range(_ROUNDS):
        settings = [[list(range(number))] for number in several]
        for number, timings in zip(several, time_all_reduces(settings, torch.device("cpu"), 1, sizes), strict=True):
            for timing in timings:
                links[number][timing.size].append(timing.seconds)
        for number, module in modules.items():
            dist.barrier()
            began, busy, own = time.perf_counter(), _busy(), time.process_time()
            steps = []
            if module is not None:
                steps = _steps(module, time.process_time if number == 1 else time.perf_counter)
            of_workers = torch.tensor(time.process_time() - own, dtype=torch.float64)
            dist.all_reduce(of_workers)
            by_others = max(_busy() - busy - of_workers.item(), 0.0) / (time.perf_counter() - began)
            if number == 1:
                alone += steps
            elif steps:
                rounds[number].append((fmean(map(sum, steps)), max(cores - by_others, 0.5)))
    if rank == 0:
        found = {
            "links": links,
            "compute": median(compute for compute, _ in alone),
            "optimizer": median(optimizer for _, optimizer in alone),
            "gradients": 4 * _LAYERS * (_WIDTH + 1) * _WIDTH,
            "rounds": rounds,
        }
        Path(file).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _busy() -> float:
    """Return the seconds for which the cores of this machine have been busy, all together."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _module(workers: int) -> nn.Module | None:
    """Return the network of the first so many workers; None on the others."""
    torch.manual_seed(0)
    group = dist.new_group(list(range(workers)))
    if dist.get_rank() >= workers:
        return None
    module = nn.Sequential(*[nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU()) for _ in range(_LAYERS)])
    if workers == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, process_group=group, gradient_as_bucket_view=True)


def _steps(module: nn.Module, clock: Callable[[], float]) -> list[tuple[float, float]]:
    """Train, and return the seconds of forward and backward and of the optimizer, of all steps but the first."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    batch = torch.randn(_BATCH, _WIDTH)
    times = []
    for _ in range(1 + _STEPS):
        began = clock()
        module(batch).square().mean().backward()
        computed = clock()
        optimizer.step()
        optimizer.zero_grad()
        times.append((computed - began, clock() - computed))
    return times[1:]
