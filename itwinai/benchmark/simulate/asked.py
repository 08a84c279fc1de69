"""What the flags of `itwinai benchmark simulate` ask for, beside a benchmark and measured links."""

from __future__ import annotations

import argparse
import dataclasses
import math

from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Scaling
from itwinai.benchmark.simulate import units
from itwinai.benchmark.simulate.collectives import Algorithm
from itwinai.benchmark.simulate.flags import WORKERS
from itwinai.benchmark.simulate.from_record import computes_on_cpu, threads_of, workloads_of
from itwinai.benchmark.simulate.links import Link, Topology
from itwinai.benchmark.simulate.links_file import MeasuredLinks
from itwinai.benchmark.simulate.strategies import STRATEGIES
from itwinai.benchmark.simulate.workload import Cores, Exchange, Layer, Workload
from itwinai.errors import ConfigurationError


def workload_asked(
    given: argparse.Namespace, record: BenchmarkRecord | None, measured: MeasuredLinks | None, strategy: str = SINGLE
) -> tuple[Workload, str]:
    """Return what one worker does, and a line about what was chosen of several; empty if there was no choice.

    Args:
        given: the flags.
        record: the benchmark of ``--from``.
        measured: the links of ``--links``.
        strategy: of the worker.

    Raises:
        ConfigurationError: the benchmark does not have it.
    """
    layers = _layers(given.layers)
    if record is None:
        in_layers = sum(layer.gradient_bytes for layer in layers)
        workload = Workload(
            compute=given.compute,
            gradient_bytes=given.gradients or in_layers or 4 * given.parameters,
            batch=given.batch,
            parameters=given.parameters,
            optimizer=given.optimizer or 0.0,
            other=given.other or 0.0,
            variation=given.variation or 0.0,
            backward_share=given.backward_share,
            layers=layers,
            cores=cores_asked(given, record, measured),
        )
        return workload, ""
    workloads = record_workloads(given, record, measured, strategy)
    asked = {tuple(text.split("=", 1)) for text in given.axis}
    fitting = [axes for axes in workloads if asked <= set(axes)]
    if not fitting:
        there = "; ".join(_axes_told(axes) for axes in workloads)
        raise ConfigurationError(f"One worker was not measured with {', '.join(given.axis)}, but with: {there}.")
    workload = dataclasses.replace(workloads[fitting[0]], layers=layers)
    if len(fitting) == 1:
        return workload, ""
    return workload, f"The benchmark has varied more; this is for {_axes_told(fitting[0])} (--axis takes another one)."


def record_workloads(
    given: argparse.Namespace, record: BenchmarkRecord, measured: MeasuredLinks | None, strategy: str
) -> dict[tuple[tuple[str, str], ...], Workload]:
    """Return what one worker of a benchmark does under a strategy, by what else was varied."""
    cores = cores_asked(given, record, measured)
    workloads = workloads_of(record, strategy, cores, given.optimizer, given.other or 0.0, given.backward_share)
    if given.variation is None:
        return workloads
    return {axes: dataclasses.replace(one, variation=given.variation) for axes, one in workloads.items()}


def cores_asked(
    given: argparse.Namespace, record: BenchmarkRecord | None, measured: MeasuredLinks | None
) -> Cores | None:
    """Return the cores of a node that workers share; None if they share none.

    Raises:
        ConfigurationError: they do, and it is not known how many there are.
    """
    number = given.cores
    if number is None and record is not None and computes_on_cpu(record):
        if measured is None or measured.device != "cpu":
            raise ConfigurationError(
                "The workers of this benchmark compute on CPUs. Say with --cores how many a node has."
            )
        number = measured.cores
    if number is None:
        if given.threads is not None:
            raise ConfigurationError("--threads needs --cores: how many cores does a node have?")
        return None
    if not number > 0:
        raise ConfigurationError(f"A node has more than 0 cores, and not {number:g}.")
    threads = given.threads or (None if record is None else threads_of(record))
    return Cores(number, threads or max(int(number), 1))


def topology_asked(given: argparse.Namespace, measured: MeasuredLinks | None) -> Topology:
    """Return what joins the workers: what was measured, and what the flags say beside it."""
    between = None if given.node_latency is None else Link(given.node_latency, given.node_bandwidth)
    if measured is not None:
        topology = measured.topology(given.workers_per_node)
        return topology if between is None else dataclasses.replace(topology, between=between)
    link = Link(given.latency, given.bandwidth)
    if given.workers_per_node is None:
        return Topology.flat(link)
    return Topology(given.workers_per_node, link, between)


def options_asked(given: argparse.Namespace, measured: MeasuredLinks | None) -> Exchange:
    """Return how gradients meet, but for name and stage."""
    usual = Exchange()
    # Gloo has no other algorithm than a ring for large tensors.
    by_default: Algorithm = "ring" if measured is not None and measured.backend == "gloo" else "best"
    return Exchange(
        algorithm=given.algorithm or by_default,
        overlap=not given.no_overlap,
        prefetch=not given.no_prefetch,
        bucket_bytes=usual.bucket_bytes if given.bucket is None else given.bucket,
        first_bucket_bytes=usual.first_bucket_bytes if given.first_bucket is None else given.first_bucket,
        accumulate=given.accumulate,
    )


def strategies_asked(given: argparse.Namespace, record: BenchmarkRecord | None) -> list[str]:
    """Return the names of the strategies: those that are given, or those of the benchmark that there is a model of."""
    if given.strategies is not None:
        names = [name.strip() for name in given.strategies.split(",")]
    else:
        cells = () if record is None else (measurement.cell for measurement in record.measurements)
        measured = {cell.strategy for cell in cells if cell.strategy != SINGLE}
        names = [name for name in STRATEGIES if name in measured]
    return list(dict.fromkeys(names)) or ["ddp"]


def scaling_asked(given: argparse.Namespace, record: BenchmarkRecord | None) -> Scaling:
    """Return how the batch goes with the number of workers: as it is given, or as the benchmark has done it first."""
    cells = [measurement.cell for measurement in record.measurements] if record is not None else []
    measured: list[Scaling] = [cell.scaling for cell in cells if cell.workers > 1]
    scaling: Scaling = given.scaling or (measured[0] if measured else "strong")
    return scaling


def workers_asked(
    given: argparse.Namespace, workload: Workload, topology: Topology, scaling: Scaling
) -> tuple[list[int], str]:
    """Return the numbers of workers, and a line about those that are left out by default; empty if there are none."""
    if given.workers is not None:
        return units.numbers_of_workers(given.workers), ""
    numbers = units.numbers_of_workers(WORKERS)
    by_batch, by_links = workload.most_workers(scaling), topology.most_workers
    most = min(by_batch, by_links)
    if most >= numbers[-1]:
        return numbers, ""
    if by_links <= by_batch:
        why = "nothing is known of the link between nodes (--node-latency and --node-bandwidth say it)"
    else:
        why = f"with strong scaling a batch of {workload.batch} samples is enough for no more (--scaling weak is)"
    return [number for number in numbers if number <= most], f"No more than {math.floor(most):,} workers: {why}."


def _layers(text: str | None) -> tuple[Layer, ...]:
    if text is None:
        return ()
    layers = []
    for word in text.split(","):
        size, colon, weight = word.partition(":")
        try:
            layers.append(Layer(units.size_in_bytes(size), float(weight) if colon else 1.0))
        except ValueError as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"--layers: '{weight}' is no weight. Write 4MB:3 for example.") from None
    return tuple(layers)


def _axes_told(axes: tuple[tuple[str, str], ...]) -> str:
    return ", ".join("=".join(pair) for pair in axes) or "nothing varied"
