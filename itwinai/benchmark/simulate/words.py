"""Predictions in sentences: where efficiency is lost, to what, and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from itwinai.benchmark.simulate.collectives import ALGORITHMS
from itwinai.benchmark.simulate.links import Link, Topology
from itwinai.benchmark.simulate.prediction import Prediction
from itwinai.benchmark.simulate.workload import Workload
from itwinai.benchmark.telling.amounts import seconds_text, traffic_text

ENOUGH = 0.7
"""Efficiency below which a reader is told what binds."""

CAUSES = {
    "latency": "the latency of the links",
    "bandwidth": "the bandwidth of the links",
    "stragglers": "waiting for the slowest worker",
    "optimizer": "the optimizer, whose work is not divided",
    "other": "what each step takes whatever its batch (hooks, loggers)",
    "uneven batch": "a batch that the workers cannot divide evenly",
    "cores": "cores that the workers of a node share",
}

_HELP = {
    "latency": "fewer and larger exchanges: accumulate gradients over several batches, take larger buckets",
    "bandwidth": "more samples for each worker between two exchanges (a larger batch, or accumulated gradients), "
    "gradients in 16 bits, a faster link",
    "stragglers": "steps of equal length: inputs of equal size, data that is ready in time, nodes of one's own; or "
    "accumulated gradients, with which fewer steps wait",
    "optimizer": "ZeRO stage 1, which divides it among the workers, or a fused optimizer",
    "other": "a larger batch for each worker, and hooks and loggers that run every so many steps",
    "uneven batch": "a batch that is a multiple of the number of workers",
    "cores": "fewer workers or threads on each node, and more nodes",
}


def conclusion(predictions: Sequence[Prediction]) -> str:
    """Return where the efficiency of a strategy falls below 70 %, what binds there, and what would help.

    Args:
        predictions: of one strategy.
    """
    ordered = sorted(predictions, key=lambda prediction: prediction.workers)
    name = ordered[0].exchange.name
    low = next((prediction for prediction in ordered if prediction.efficiency < ENOUGH), None)
    if low is None:
        last = ordered[-1]
        workers = _count(last.workers, "worker")
        reached = f"{name}: {last.efficiency:.0%} efficiency with {workers}, the most that were asked for."
        cause, seconds = binding(last)
        if seconds < 0.01 * last.step:
            return reached
        return f"{reached} Most is lost to {CAUSES[cause]}: {seconds / last.step:.0%} of the step."
    enough = [prediction.workers for prediction in ordered if prediction.workers < low.workers]
    until = f"at least {ENOUGH:.0%} efficiency up to {_count(enough[-1], 'worker')}; " if enough else ""
    cause, seconds = binding(low)
    hidden = ", and an exchange that overlaps with backward"
    more = hidden if cause in ("latency", "bandwidth") and not low.exchange.overlap else ""
    return (
        f"{name}: {until}{low.efficiency:.0%} with {low.workers:,}. What binds there is {CAUSES[cause]}: "
        f"{seconds / low.step:.0%} of the step. What would help: {_HELP[cause]}{more}."
    )


def binding(prediction: Prediction) -> tuple[str, float]:
    """Return what a step loses most to, and the seconds."""
    cause = max(prediction.losses, key=lambda name: prediction.losses[name])
    return cause, prediction.losses[cause]


def workload_told(workload: Workload) -> str:
    """Return what one worker does, in one line."""
    parts = [f"computes {seconds_text(workload.compute)}"]
    if workload.batch is not None:
        parts[0] += f" for {workload.batch:,} samples"
    if workload.optimizer:
        parts.append(f"optimizer {seconds_text(workload.optimizer)}")
    if workload.other:
        parts.append(f"other {seconds_text(workload.other)}")
    parts.append(f"gradients {traffic_text(workload.gradient_bytes)}")
    if workload.parameters is not None:
        parts.append(f"{workload.parameters:,} parameters")
    parts.append(f"steps vary by {workload.variation:.1%}" if workload.variation else "steps do not vary")
    if workload.cores is not None:
        parts.append(f"{_count(workload.cores.threads, 'thread')} on {_count(workload.cores.number, 'core')}")
    return ", ".join(parts)


def topology_told(topology: Topology) -> str:
    """Return what joins the workers, in one line."""
    if topology.workers_per_node == 1 and topology.between is not None:
        return f"{link_told(topology.between)} between any two workers"
    within = topology.within_measured or ((0, topology.within),)
    links = [f"{link_told(link)}{f' with {number} of them' if number else ''}" for number, link in within]
    text = f"within a node of {_count(topology.workers_per_node, 'worker')} {'; '.join(links)}"
    if topology.between is None:
        return f"{text}; one node only"
    return f"{text}; between nodes {link_told(topology.between)}"


def link_told(link: Link) -> str:
    """Return a link as ``5.00 µs, 25.0 GB/s``."""
    return f"{seconds_text(link.latency)}, {traffic_text(link.bandwidth)}/s"


def assumptions(workload: Workload, predictions: Sequence[Prediction]) -> list[str]:
    """Return what the predictions take for granted, in sentences.

    Args:
        workload: what one worker does.
        predictions: of all strategies.
    """
    exchange, strong = predictions[0].exchange, predictions[0].scaling == "strong"
    algorithm = exchange.algorithm
    ways = ", ".join(ALGORITHMS[:-1])
    said = [
        "no other traffic on the links; all-reduce by "
        + (f"whichever is fastest of {ways}" if algorithm == "best" else algorithm)
        + (", in buckets that overlap with backward" if exchange.overlap else ", after backward"),
        "gradients become ready "
        + ("layer by layer" if workload.layers else "in proportion to their bytes")
        + f" in backward, which takes {workload.backward_share:.0%} of the computing time",
    ]
    if strong:
        said.append(
            "computing time is proportional to the samples: small batches take more than that (--other says it)"
        )
    if workload.variation:
        said.append("the times of workers vary independently, as a normal distribution")
    if not workload.optimizer:
        said.append("the optimizer's time is not known: it is part of the computing time (--optimizer says it)")
    if workload.cores is not None:
        said.append("threads share a node's cores evenly; moving bytes takes one core of each worker")
    if any(prediction.memory for prediction in predictions):
        said.append("memory is that of parameters, gradients and Adam's state; activations come on top")
    return said


def _count(number: float, noun: str) -> str:
    return f"{number:,g} {noun}{'' if number == 1 else 's'}"
