"""Predictions as tables, CSV and sentences: where efficiency is lost, to what, and what would help."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from itwinai.benchmark.simulate.calibration import PredictedCell
from itwinai.benchmark.simulate.collectives import ALGORITHMS
from itwinai.benchmark.simulate.measured_links import FittedLink
from itwinai.benchmark.simulate.prediction import Prediction
from itwinai.benchmark.simulate.topology import Link, Topology
from itwinai.benchmark.simulate.workload import Workload
from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import UNKNOWN, bytes_text, time_text, traffic_text
from itwinai.reporting.sections import Table
from itwinai.reporting.tables import table_text

ENOUGH = 0.7
"""Efficiency below which the conclusion names the bottleneck."""

# What a step loses time to, and what helps.
CAUSES = {
    "latency": "the latency of the links",
    "bandwidth": "the bandwidth of the links",
    "stragglers": "waiting for the slowest worker",
    "optimizer": "the optimizer, whose work is not divided",
    "other": "what each step takes independent of its batch (hooks, loggers)",
    "uneven batch": "a batch that the workers cannot divide evenly",
    "cores": "cores that the workers of a node share",
}

_HELP = {
    "latency": "accumulate gradients over several batches, or use larger buckets",
    "bandwidth": "more samples per worker between two exchanges (a larger batch, or accumulated gradients), gradients "
    "in 16 bits, a faster link",
    "stragglers": "steps of equal length (inputs of equal size, data that is ready in time, exclusive nodes), or "
    "accumulated gradients, so that fewer steps wait",
    "optimizer": "ZeRO stage 1, which divides it among the workers, or a fused optimizer",
    "other": "a larger batch per worker, and hooks and loggers that run only every few steps",
    "uneven batch": "a batch that is a multiple of the number of workers",
    "cores": "fewer workers or threads on each node, and more nodes",
}


def conclusion(predictions: Sequence[Prediction]) -> str:
    """Return where the efficiency of one strategy falls below 70 %, the bottleneck there, and what would help."""
    ordered = sorted(predictions, key=lambda prediction: prediction.workers)
    name = ordered[0].model.name
    low = next((prediction for prediction in ordered if prediction.efficiency < ENOUGH), None)
    cause, seconds = bottleneck(low or ordered[-1])
    if low is None:
        last = ordered[-1]
        reached = f"{name}: {last.efficiency:.0%} efficiency with {_count(last.workers, 'worker')}, the most simulated."
        if seconds < 0.01 * last.step:
            return reached
        return f"{reached} Most is lost to {CAUSES[cause]}: {seconds / last.step:.0%} of the step."
    enough = [prediction.workers for prediction in ordered if prediction.workers < low.workers]
    until = f"at least {ENOUGH:.0%} efficiency up to {_count(enough[-1], 'worker')}; " if enough else ""
    exchanging = cause in ("latency", "bandwidth") and not low.model.overlap
    return (
        f"{name}: {until}{low.efficiency:.0%} with {low.workers:,}. The bottleneck there is {CAUSES[cause]}: "
        f"{seconds / low.step:.0%} of the step. What would help: {_HELP[cause]}"
        f"{', and an exchange that overlaps with backward' if exchanging else ''}."
    )


def bottleneck(prediction: Prediction) -> tuple[str, float]:
    """Return the largest loss of a step: its cause and its seconds."""
    return max(prediction.losses.items(), key=lambda loss: loss[1])


def workload_text(workload: Workload) -> str:
    """Return the work of one worker in one line."""
    parts = [f"computes {time_text(workload.compute)}"]
    if workload.batch is not None:
        parts[0] += f" for {workload.batch:,} samples"
    if workload.optimizer:
        parts.append(f"optimizer {time_text(workload.optimizer)}")
    if workload.other:
        parts.append(f"other {time_text(workload.other)}")
    parts.append(f"gradients {traffic_text(workload.gradient_bytes)}")
    if workload.parameters is not None:
        parts.append(f"{workload.parameters:,} parameters")
    parts.append(f"steps vary by {workload.variation:.1%}" if workload.variation else "steps do not vary")
    if workload.cores is not None:
        parts.append(f"{_count(workload.cores.threads, 'thread')} on {_count(workload.cores.number, 'core')}")
    return ", ".join(parts)


def topology_text(topology: Topology) -> str:
    """Return the links between the workers in one line."""
    if topology.workers_per_node == 1 and topology.between is not None:
        return f"{link_text(topology.between)} between any two workers"
    within = topology.within_measured or ((0, topology.within),)
    links = [f"{link_text(link)}{f' with {number} of them' if number else ''}" for number, link in within]
    text = f"within a node of {_count(topology.workers_per_node, 'worker')} {'; '.join(links)}"
    if topology.between is None:
        return f"{text}; one node only"
    return f"{text}; between nodes {link_text(topology.between)}"


def link_text(link: Link) -> str:
    """Return a link as ``5.00 µs, 25.0 GB/s``."""
    return f"{time_text(link.latency)}, {traffic_text(link.bandwidth)}/s"


def assumptions(workload: Workload, predictions: Sequence[Prediction]) -> list[str]:
    """Return what the predictions of all strategies assume, in sentences."""
    model = predictions[0].model
    fastest = f"the fastest of {', '.join(ALGORITHMS[:-1])}"
    texts = [
        f"no other traffic on the links; all-reduce by {fastest if model.algorithm == 'best' else model.algorithm}"
        f", {'in buckets that overlap with backward' if model.overlap else 'after backward'}",
        f"gradients become ready {'layer by layer' if workload.layers else 'in proportion to their bytes'} in "
        f"backward, which takes {workload.backward_share:.0%} of the computing time",
    ]
    if predictions[0].scaling == "strong":
        texts.append("computing time is proportional to the samples; small batches take more (add it with --other)")
    if workload.variation:
        texts.append("the times of workers vary independently, with a normal distribution")
    if not workload.optimizer:
        texts.append("the optimizer's time is unknown: it counts as computing time (give it with --optimizer)")
    if workload.cores is not None:
        texts.append("threads share a node's cores evenly; moving bytes takes one core of each worker")
    if any(prediction.memory for prediction in predictions):
        texts.append("memory is that of parameters, gradients and Adam's state; activations come on top")
    return texts


def prediction_table(predictions: Sequence[Prediction]) -> str:
    """Return a table for each strategy, in lines of at most 100 characters."""
    longest = max(prediction.step for prediction in predictions)
    factor, unit = (1.0, "s") if longest >= 10 else (1e3, "ms") if longest >= 10e-3 else (1e6, "us")
    heading = ["workers", "step", "compute", "exposed", "hidden", "waiting", "optimizer"]
    heading += ["speed-up", "effic.", "samples/s", "memory"]
    strategies: dict[str, list[list[str]]] = {}
    for one in predictions:
        times = (one.step, one.compute + one.other, one.exposed, one.hidden, one.waiting, one.optimizer)
        strategies.setdefault(one.model.name, []).append(
            [
                f"{one.workers:,}",
                *(_digits(seconds * factor) for seconds in times),
                _digits(one.speedup),
                f"{one.efficiency:.0%}" if one.efficiency >= 0.1 else f"{one.efficiency:.1%}",
                UNKNOWN if one.throughput is None else _digits(one.throughput),
                UNKNOWN if one.memory is None else bytes_text(one.memory),
            ]
        )
    return "\n\n".join(
        f"{name}, times in {unit}\n{table_text(Table(heading, rows))}" for name, rows in strategies.items()
    )


def measured_table(cells: Sequence[PredictedCell]) -> str:
    """Return measured steps and their predictions, the error of each, and why some have no prediction."""
    rows = [
        [
            one.cell.strategy,
            str(one.cell.workers),
            one.cell.scaling,
            ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in one.cell.axes) or UNKNOWN,
            time_text(one.measured),
            UNKNOWN if one.predicted is None else time_text(one.predicted),
            UNKNOWN if one.error is None else f"{one.error:+.0%}",
        ]
        for one in cells
    ]
    notes = [f"- {one.cell.strategy} with {one.cell.workers}: {one.reason}" for one in cells if one.predicted is None]
    heading = ("strategy", "workers", "scaling", "settings", "measured", "predicted", "error")
    return "\n".join([table_text(Table(heading, rows)), *notes])


def link_table(fitted: FittedLink) -> str:
    """Return the timings of a link and those of its fit."""
    rows = []
    for timing, error in zip(fitted.timings, fitted.errors, strict=True):
        sent = 2 * (fitted.workers - 1) / fitted.workers * timing.size
        predicted, rate = time_text(fitted.predicted(timing)), f"{traffic_text(sent / timing.seconds)}/s"
        rows.append([f"{timing.size:,}", time_text(timing.seconds), predicted, f"{error:+.0%}", rate])
    heading = ("bytes", "measured", "fitted", "error", "bandwidth")
    return table_text(Table(heading, rows))


def write_predictions(predictions: Sequence[Prediction], path: str | os.PathLike[str]) -> None:
    """Write predictions as CSV with all digits: times in seconds, memory in bytes, empty where unknown.

    A column ``lost_to_CAUSE`` holds the seconds by which a step is longer than with ideal scaling.
    """
    causes = list(predictions[0].losses)
    times = ("step", "compute", "other", "optimizer", "exposed", "hidden", "waiting")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heading = ["strategy", "stage", "workers", "scaling", *times, "speedup", "efficiency", "samples_per_second"]
    writer.writerow([*heading, "memory", *(f"lost_to_{cause.replace(' ', '_')}" for cause in causes)])
    for one in predictions:
        seconds = [getattr(one, name) for name in times]
        figures = [one.speedup, one.efficiency, one.throughput, one.memory]
        first = [one.model.name, one.model.stage, one.workers, one.scaling]
        writer.writerow([*first, *seconds, *figures, *(one.losses[cause] for cause in causes)])
    write_whole(Path(path), text.getvalue())


def _digits(value: float) -> str:
    """Return a number with three digits, and no power of ten."""
    if value == 0:
        return "0"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _count(number: float, noun: str) -> str:
    return f"{number:,g} {noun}{'' if number == 1 else 's'}"
