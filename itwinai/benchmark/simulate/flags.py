"""The flags of `itwinai benchmark simulate`, and what they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Scaling
from itwinai.benchmark.simulate import units
from itwinai.benchmark.simulate.collectives import ALGORITHMS, Algorithm
from itwinai.benchmark.simulate.from_record import computes_on_cpu, workloads_of
from itwinai.benchmark.simulate.links import Link, Topology
from itwinai.benchmark.simulate.links_file import MeasuredLinks
from itwinai.benchmark.simulate.memory import PRECISIONS
from itwinai.benchmark.simulate.strategies import STRATEGIES
from itwinai.benchmark.simulate.workload import Cores, Exchange, Layer, Workload
from itwinai.errors import ConfigurationError

T = TypeVar("T")

WORKERS = "1,2,4,...,4096"
"""What is predicted by default, as far as batch and links go."""

_EPILOG = """
examples:
  itwinai benchmark links --workers 2,4 -o links.json
  itwinai benchmark simulate --from benchmarks/resnet --links links.json --workers 1,2,...,64 \\
      --node-latency 5us --node-bandwidth 25GB/s
  itwinai benchmark simulate --compute 120ms --gradients 100MB --parameters 25M --batch 4096 --workers-per-node 4 \\
      --latency 5us --bandwidth 200GB/s --node-latency 10us --node-bandwidth 25GB/s --strategies ddp,zero1,zero3
"""


def simulate_parser() -> argparse.ArgumentParser:
    """Return what reads the flags."""
    size, seconds, rate = (_type(read) for read in (units.size_in_bytes, units.seconds, units.bytes_per_second))
    number = _type(units.number)
    parser = argparse.ArgumentParser(
        prog="itwinai benchmark simulate",
        usage="itwinai benchmark simulate (--from FOLDER | --compute TIME --gradients SIZE ...)\n"
        "                                  (--links FILE | --latency TIME --bandwidth RATE ...) ...",
        description="Predict the time of a step on up to thousands of workers, from what one worker takes and what the "
        "links carry. It is a model, and says what it assumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    work = parser.add_argument_group("one worker: from a benchmark, or by flags")
    add = work.add_argument
    add("--from", dest="folder", metavar="FOLDER", help="of a benchmark that has measured one worker")
    add("--axis", metavar="PATH=VALUE", action="append", default=[], help="of a benchmark that has varied more")
    add("--compute", type=seconds, help="of forward and backward for a batch: 120ms")
    add("--gradients", type=size, help="size of all gradients: 100MB; by default 4 bytes for each parameter")
    add("--parameters", type=number, help="their number, for the memory: 25M")
    add("--batch", type=number, help="samples of a batch")
    add("--optimizer", type=seconds, help="of the optimizer's step; with --from, its part of the computing time")
    add("--other", type=seconds, help="of what does not depend on the samples")
    add("--variation", type=float, help="standard deviation of the computing time of steps, by its mean: 0.05")
    add("--backward-share", type=float, default=2 / 3, help="share of backward in the computing time (0.667)")
    add(
        "--layers",
        help="gradients of the layers in the order of forward: 4MB,4MB,100MB; with weights of their "
        "computing time: 4MB:3,4MB:3,100MB:1",
    )
    add("--cores", type=float, help="of a node, where workers compute on the CPU")
    add("--threads", type=int, help="that one worker computes with (all cores)")

    joined = parser.add_argument_group("the links: from a file, by flags, or both")
    add = joined.add_argument
    add("--links", type=Path, help="file that `itwinai benchmark links` has written")
    add("--latency", type=seconds, help="of a message within a node, or between any two workers: 5us")
    add("--bandwidth", type=rate, help="the same: 25GB/s, 200Gbit/s")
    add("--workers-per-node", type=int, help="without it, --latency and --bandwidth join any two workers")
    add("--node-latency", type=seconds, help="of a message between nodes")
    add("--node-bandwidth", type=rate, help="of each worker, while all workers of a node send to other nodes")

    how = parser.add_argument_group("what to predict")
    add = how.add_argument
    add("--strategies", help="with commas between (those of the benchmark, or ddp): ddp,zero1,zero2,zero3,...")
    add("--workers", help=f"numbers of workers ({WORKERS}, as far as batch and links go)")
    add("--scaling", choices=("strong", "weak"), help="strong (default) divides the batch, weak repeats it")
    add("--algorithm", choices=ALGORITHMS, help="of all-reduces (best; with links measured over gloo, ring)")
    add("--no-overlap", action="store_true", help="exchange gradients after backward, and not during it")
    add("--no-prefetch", action="store_true", help="under stage 3, gather parameters when they are needed")
    add("--bucket", type=size, help="gradients that are exchanged together (25MiB)")
    add("--first-bucket", type=size, help="the same, for the first of them (1MiB)")
    add("--accumulate", type=int, default=1, help="batches between two steps of the optimizer (1)")
    add("--precision", choices=PRECISIONS, default="fp32", help="for the memory; mixed has parameters in 16 bits")
    add("--csv", type=Path, help="file for the table")
    add("--picture", type=Path, help="file for a picture, .svg or .png")
    return parser


def _type(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return a type of argparse, which shows the message of its own kind of error only."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def check(given: argparse.Namespace) -> None:
    """See that the flags say all that is needed, and nothing twice.

    Raises:
        ConfigurationError: they do not.
    """
    by_flags = [name for name in ("compute", "gradients", "parameters", "batch", "other") if getattr(given, name)]
    if given.folder is not None and by_flags:
        raise ConfigurationError(f"--{by_flags[0]} and --from both say what one worker does. Give one of them.")
    if given.folder is None and given.compute is None:
        raise ConfigurationError(
            "Nothing is known of one worker. Give --from FOLDER of a benchmark, or --compute and --gradients."
        )
    if given.folder is None and given.gradients is None and given.parameters is None and given.layers is None:
        raise ConfigurationError("How much the workers exchange is not known. Give --gradients, 100MB for example.")
    for first, second in (("latency", "bandwidth"), ("node_latency", "node_bandwidth")):
        if (getattr(given, first) is None) != (getattr(given, second) is None):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in (first, second))
            raise ConfigurationError(f"A link has both: {names}.")
    if given.links is None and given.latency is None:
        raise ConfigurationError(
            "Nothing is known of the links. Measure them with `itwinai benchmark links -o links.json` and give --links "
            "links.json, or give --latency and --bandwidth."
        )
    if given.links is not None and given.latency is not None:
        raise ConfigurationError("--links and --latency both say what joins the workers of a node. Give one of them.")
    if given.node_latency is not None and given.links is None and given.workers_per_node is None:
        raise ConfigurationError("--node-latency needs --workers-per-node: how many workers are on a node?")
    if given.axis and given.folder is None:
        raise ConfigurationError("--axis says which cells of a benchmark to take: it needs --from.")
    if given.threads is not None and given.threads < 1:
        raise ConfigurationError(f"A worker computes with at least one thread, and not {given.threads}.")


def workload_asked(
    given: argparse.Namespace, record: BenchmarkRecord | None, measured: MeasuredLinks | None
) -> tuple[Workload, str]:
    """Return what one worker does, and a line about what was chosen of several; empty if there was no choice.

    Args:
        given: the flags.
        record: the benchmark of ``--from``.
        measured: the links of ``--links``.

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
    workloads = record_workloads(given, record, measured)
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
    given: argparse.Namespace, record: BenchmarkRecord, measured: MeasuredLinks | None
) -> dict[tuple[tuple[str, str], ...], Workload]:
    """Return what one worker of a benchmark does, by what else was varied."""
    cores = cores_asked(given, record, measured)
    workloads = workloads_of(record, cores, given.optimizer or 0.0, given.backward_share)
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
    return Cores(number, given.threads or max(int(number), 1))


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
        names = [cell.strategy for cell in cells if cell.strategy != SINGLE and cell.strategy in STRATEGIES]
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
    """Return the numbers of workers, and a line about those that are left out; empty if there are none.

    Numbers that are asked for are not left out: they are an error where they make no sense.
    """
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
