"""The options of `itwinai benchmark simulate`: each field is a flag, with its unit and its help."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from itwinai.benchmark.record_file import read_record
from itwinai.benchmark.records import BenchmarkRecord, Scaling
from itwinai.benchmark.simulate.calibration import Axes, measured_runs, workloads_of
from itwinai.benchmark.simulate.collectives import ALGORITHMS, Algorithm
from itwinai.benchmark.simulate.measured_links import MeasuredLinks, read_links
from itwinai.benchmark.simulate.prediction import PRECISIONS, Precision
from itwinai.benchmark.simulate.strategy_models import MIB, STRATEGIES, StrategyModel, strategy_model
from itwinai.benchmark.simulate.topology import Link, Topology
from itwinai.benchmark.simulate.units import bytes_per_second, number, numbers_of_workers, seconds, size_in_bytes
from itwinai.benchmark.simulate.workload import Cores, Layer, Workload
from itwinai.errors import ConfigurationError

WORKERS = "1,2,4,...,4096"
"""Predicted by default, as far as batch and links allow."""

_GROUPS = {
    "folder": "one worker: from a benchmark, or by flags",
    "links": "the links: from a file, by flags, or both",
    "strategies": "what to predict",
}
"""Titles of the groups of flags, by their first field."""


def _flag(kind: Callable[[str], Any] | tuple[str, ...], metavar: str, text: str, default: Any = None) -> Any:
    """Return a field that is a flag.

    Args:
        kind: parses its value; or all values that it may have; ``bool`` for a flag without a value.
        metavar: what stands for its value in the help.
        text: the help.
        default: its value if it is not given.
    """
    options: dict[str, Any] = {"help": text}
    if kind is bool:
        options["action"] = "store_true"
    elif isinstance(kind, tuple):
        options["choices"] = kind
    else:
        options |= {"type": _as_type(kind), "metavar": metavar, "action": "append" if default == () else "store"}
    return field(default=default, metadata=options)


def _as_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a type for argparse, which shows the message of no error but its own."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _layers(text: str) -> tuple[Layer, ...]:
    layers = []
    for word in text.split(","):
        size, colon, weight = word.partition(":")
        try:
            share = float(weight) if colon else 1.0
        except ValueError:
            raise ConfigurationError(f"'{weight}' is not a weight. Write 4MB:3 for example.") from None
        layers.append(Layer(size_in_bytes(size), share))
    return tuple(layers)


@dataclass(frozen=True)
class SimulationOptions:
    """What to simulate, in seconds and bytes; the help of each flag says what its field is."""

    folder: str | None = _flag(str, "FOLDER", "benchmark that has measured one worker")
    axis: tuple[str, ...] = _flag(str, "PATH=VALUE", "a value of an axis that the benchmark varies", ())
    compute: float | None = _flag(seconds, "TIME", "forward and backward of a batch: 120ms; a number is seconds")
    gradients: float | None = _flag(size_in_bytes, "SIZE", "of all gradients: 100MB (4 bytes per parameter)")
    parameters: int | None = _flag(number, "N", "number of parameters, to predict memory: 25M")
    batch: int | None = _flag(number, "N", "samples of a batch")
    optimizer: float | None = _flag(
        seconds, "TIME", "the optimizer's step; with --from, part of computing (as measured)"
    )
    other: float | None = _flag(seconds, "TIME", "time that no samples change; with --from, part of computing")
    variation: float | None = _flag(float, "X", "standard deviation of computing times, divided by their mean: 0.05")
    backward_share: float = _flag(float, "X", "share of backward in the computing time (0.667)", 2 / 3)
    layers: tuple[Layer, ...] | None = _flag(
        _layers, "SIZES", "gradients in the order of forward: 4MB,4MB,100MB; with weights of their time: 4MB:3,100MB:1"
    )
    cores: float | None = _flag(float, "X", "cores of a node, for workers that compute on the CPU")
    threads: int | None = _flag(int, "N", "threads of one worker (as in the benchmark, or as many as cores)")

    links: Path | None = _flag(Path, "FILE", "file that `itwinai benchmark links` wrote")
    latency: float | None = _flag(seconds, "TIME", "of a message within a node, or between any two workers: 5us")
    bandwidth: float | None = _flag(bytes_per_second, "RATE", "the same: 25GB/s, 200Gbit/s")
    workers_per_node: int | None = _flag(int, "N", "without it, --latency and --bandwidth join any two workers")
    node_latency: float | None = _flag(seconds, "TIME", "of a message between nodes")
    node_bandwidth: float | None = _flag(bytes_per_second, "RATE", "of each worker, while all of a node send")

    strategies: str | None = _flag(str, "NAMES", "ddp,zero1,zero2,zero3,... (those of the benchmark, or ddp)")
    workers: str | None = _flag(str, "NUMBERS", f"numbers of workers ({WORKERS}, as batch and links allow)")
    scaling: Scaling | None = _flag(("strong", "weak"), "", "strong (default) divides the batch, weak repeats it")
    algorithm: Algorithm | None = _flag(ALGORITHMS, "", "of all-reduces (best; with links measured over gloo, ring)")
    no_overlap: bool = _flag(bool, "", "exchange gradients after backward, not during it", False)
    no_prefetch: bool = _flag(bool, "", "with stage 3, gather parameters when they are needed", False)
    bucket: float = _flag(size_in_bytes, "SIZE", "gradients that are exchanged together (25MiB)", 25 * MIB)
    first_bucket: float = _flag(size_in_bytes, "SIZE", "the first of them (1MiB)", 1 * MIB)
    accumulate: int = _flag(int, "N", "batches between two steps of the optimizer (1)", 1)
    precision: Precision = _flag(PRECISIONS, "", "for memory; mixed has parameters in 16 bits", "fp32")
    csv: Path | None = _flag(Path, "FILE", "write the table to this file")
    picture: Path | None = _flag(Path, "FILE", "draw a picture, .svg or .png")

    def __post_init__(self) -> None:
        given = [name for name in ("compute", "gradients", "parameters", "batch") if getattr(self, name)]
        if self.folder is not None and given:
            raise ConfigurationError(f"--{given[0]} and --from both describe one worker. Give one of them.")
        if self.folder is None and self.compute is None:
            raise ConfigurationError("Describe one worker: give --from FOLDER, or --compute and --gradients.")
        if self.folder is None and self.gradients is None and self.parameters is None and not self.layers:
            raise ConfigurationError("How large are the gradients? Give --gradients, 100MB for example.")
        for first, second in (("latency", "bandwidth"), ("node_latency", "node_bandwidth")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                names = " and ".join(f"--{name.replace('_', '-')}" for name in (first, second))
                raise ConfigurationError(f"A link needs both {names}.")
        if self.links is None and self.latency is None:
            raise ConfigurationError(
                "Describe the links: measure them with `itwinai benchmark links -o links.json` and give --links "
                "links.json, or give --latency and --bandwidth."
            )
        if self.links is not None and self.latency is not None:
            raise ConfigurationError("--links and --latency both describe the links within a node. Give one of them.")
        if self.node_latency is not None and self.links is None and self.workers_per_node is None:
            raise ConfigurationError("--node-latency needs --workers-per-node: how many workers are on a node?")
        if self.axis and self.folder is None:
            raise ConfigurationError("--axis selects cells of a benchmark: it needs --from.")
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(f"--threads must be at least 1; got {self.threads}.")
        if self.picture is not None and self.picture.suffix not in (".svg", ".png"):
            raise ConfigurationError(f"A picture must end in .svg or .png; got {self.picture}.")

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add a flag for each field to a parser."""
        group: Any = None
        for one in dataclasses.fields(cls):
            group = parser.add_argument_group(_GROUPS[one.name]) if one.name in _GROUPS else group
            name = "--from" if one.name == "folder" else f"--{one.name.replace('_', '-')}"
            default: Any = [] if one.metadata.get("action") == "append" else one.default
            group.add_argument(name, dest=one.name, default=default, **one.metadata)

    @cached_property
    def record(self) -> BenchmarkRecord | None:
        """The benchmark of ``--from``."""
        return None if self.folder is None else read_record(self.folder)

    @cached_property
    def measured(self) -> MeasuredLinks | None:
        """The links of ``--links``."""
        return None if self.links is None else read_links(self.links)

    def workload(self, strategy: str) -> tuple[Workload, str]:
        """Return the work of one worker of a strategy, and a line about what was chosen if the benchmark varies more.

        Raises:
            ConfigurationError: the benchmark does not have it.
        """
        if self.record is None:
            return self._workload_by_flags(), ""
        workloads = self.recorded_workloads(strategy)
        selected = {tuple(text.split("=", 1)) for text in self.axis}
        fitting = [axes for axes in workloads if selected <= set(axes)]
        if not fitting:
            known = "; ".join(map(_axes_text, workloads))
            raise ConfigurationError(f"One worker was not measured with {', '.join(self.axis)}, but with: {known}.")
        workload = dataclasses.replace(workloads[fitting[0]], layers=self.layers or ())
        several = f"The benchmark varies more; this is for {_axes_text(fitting[0])} (--axis selects another)."
        return workload, several if len(fitting) > 1 else ""

    def recorded_workloads(self, strategy: str) -> dict[Axes, Workload]:
        """Return the work of one worker of the benchmark with a strategy, by axes."""
        assert self.record is not None
        return workloads_of(
            self.record, strategy, self._cores(), self.optimizer, self.other or 0.0, self.backward_share, self.variation
        )

    def topology(self) -> Topology:
        """Return the links between the workers: as measured, and as the flags say."""
        between = None
        if self.node_latency is not None and self.node_bandwidth is not None:
            between = Link(self.node_latency, self.node_bandwidth)
        if self.measured is not None:
            topology = self.measured.topology(self.workers_per_node)
            return topology if between is None else dataclasses.replace(topology, between=between)
        assert self.latency is not None and self.bandwidth is not None
        link = Link(self.latency, self.bandwidth)
        return Topology.flat(link) if self.workers_per_node is None else Topology(self.workers_per_node, link, between)

    def models(self) -> list[StrategyModel]:
        """Return the strategies: those of the flag, or those of the benchmark that have a model, or DDP."""
        recorded = {one.cell.strategy for one in self.record.measurements} if self.record is not None else set()
        names = [name for name in STRATEGIES if name in recorded] or ["ddp"]
        if self.strategies is not None:
            names = [name.strip() for name in self.strategies.split(",")]
        return [strategy_model(name, self.exchange()) for name in dict.fromkeys(names)]

    def exchange(self) -> StrategyModel:
        """Return how gradients are exchanged, without name and stage of a strategy."""
        # Gloo has no other algorithm than a ring for large tensors.
        by_default: Algorithm = "ring" if self.measured is not None and self.measured.backend == "gloo" else "best"
        return StrategyModel(
            algorithm=self.algorithm or by_default,
            overlap=not self.no_overlap,
            prefetch=not self.no_prefetch,
            bucket_bytes=self.bucket,
            first_bucket_bytes=self.first_bucket,
            accumulate=self.accumulate,
        )

    def chosen_scaling(self) -> Scaling:
        """Return the scaling: that of the flag, or the first of the benchmark."""
        measurements = self.record.measurements if self.record is not None else ()
        recorded: list[Scaling] = [one.cell.scaling for one in measurements if one.cell.workers > 1]
        return self.scaling or (recorded[0] if recorded else "strong")

    def worker_counts(self, workload: Workload, topology: Topology, scaling: Scaling) -> tuple[list[int], str]:
        """Return the numbers of workers, and a line about those that are left out by default."""
        numbers = numbers_of_workers(WORKERS if self.workers is None else self.workers)
        by_batch, by_links = workload.most_workers(scaling), topology.most_workers
        most = min(by_batch, by_links)
        if self.workers is not None or most >= numbers[-1]:
            return numbers, ""
        if by_links <= by_batch:
            why = "the link between nodes is not known (give --node-latency and --node-bandwidth)"
        else:
            why = f"with strong scaling, each needs one of the {workload.batch} samples (or use --scaling weak)"
        return [number for number in numbers if number <= most], f"No more than {math.floor(most):,} workers: {why}."

    def _workload_by_flags(self) -> Workload:
        assert self.compute is not None
        layers = self.layers or ()
        in_layers = sum(layer.gradient_bytes for layer in layers)
        return Workload(
            compute=self.compute,
            gradient_bytes=self.gradients or in_layers or 4 * (self.parameters or 0),
            batch=self.batch,
            parameters=self.parameters,
            optimizer=self.optimizer or 0.0,
            other=self.other or 0.0,
            variation=self.variation or 0.0,
            backward_share=self.backward_share,
            layers=layers,
            cores=self._cores(),
        )

    def _cores(self) -> Cores | None:
        """Return the cores that the workers of a node share; None if they share none."""
        cells = measured_runs(self.record) if self.record is not None else {}
        number = self.cores
        if number is None and any(run.device.upper() == "CPU" for runs in cells.values() for run in runs):
            if self.measured is None or self.measured.device != "cpu":
                raise ConfigurationError(
                    "The workers of this benchmark compute on CPUs. Say with --cores how many a node has."
                )
            number = self.measured.cores
        if number is None:
            if self.threads is not None:
                raise ConfigurationError("--threads needs --cores: how many cores does a node have?")
            return None
        if not number > 0:
            raise ConfigurationError(f"--cores must be more than 0; got {number:g}.")
        of_one_worker = (run.threads for cell, runs in cells.items() for run in runs if cell.workers == 1)
        recorded = next(filter(None, of_one_worker), None)
        return Cores(number, self.threads or recorded or max(int(number), 1))


def _axes_text(axes: Axes) -> str:
    return ", ".join("=".join(pair) for pair in axes) or "nothing varied"
