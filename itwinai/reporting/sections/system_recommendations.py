"""What to do about what a run used of its nodes, with the figures that say so."""

from __future__ import annotations

from collections.abc import Iterator

from itwinai.monitoring.monitor_summary import MonitorSummary, NodeSummary
from itwinai.reporting.recommendation import Recommendation, recommend

IDLE_GPU = 50.0
FULL_MEMORY = 90.0
FULL_CPU = 90.0

FEWEST = 3
"""Samples below which nothing is concluded."""


def advice(summary: MonitorSummary) -> list[str]:
    """Return what to do, each with the figures behind it."""
    return [text for node in summary.nodes for text in recommend(node, _idle_gpus, _full_memory, _too_few_cores)]


def _idle_gpus(node: NodeSummary) -> Iterator[Recommendation]:
    gpus = {name: gpu.mean for name, gpu in node.of_gpus("utilization_percent").items() if gpu.samples >= FEWEST}
    if gpus and (mean := sum(gpus.values()) / len(gpus)) < IDLE_GPU:
        each = ", ".join(f"{name} {value:.0f} %" for name, value in list(gpus.items())[:8])
        yield Recommendation(
            f"GPUs of {node.name} computed {mean:.0f} % of the time ({each})",
            f"Look where the steps wait with ProfilingCallback; {_while_cpu(node)}",
        )


def _full_memory(node: NodeSummary) -> Iterator[Recommendation]:
    memory = node.quantities.get("node_memory_percent")
    if memory is not None and memory.peak > FULL_MEMORY:
        own = node.quantities.get("memory_pss_gb") or node.quantities.get("memory_gb")
        share = f", {own.peak:.1f} GB of it by this run" if own is not None else ""
        yield Recommendation(
            f"Memory of {node.name} was {memory.peak:.0f} % full at most{share}",
            "The system ends programs when it is full: use fewer workers of the DataLoader, or a smaller "
            "prefetch_factor.",
        )


def _too_few_cores(node: NodeSummary) -> Iterator[Recommendation]:
    cpu, running = node.quantities.get("cpu_percent"), node.quantities.get("running_processes")
    cores = float(node.sampled.facts.get("cores", "inf"))
    if cpu is None or running is None or running.samples < FEWEST:
        return
    if cpu.mean > FULL_CPU and running.mean > cores:
        yield Recommendation(
            f"CPU of {node.name}: {running.mean:.1f} processes of this run wanted to run at once on {cores:.0f} cores, "
            f"which were {cpu.mean:.0f} % busy",
            "Use fewer workers of the DataLoader, or request more cores.",
        )


def _while_cpu(node: NodeSummary) -> str:
    """Return what to try for idle GPUs, which depends on whether the processor has something left."""
    cpu = node.quantities.get("cpu_percent")
    if cpu is None:
        return "more workers of the DataLoader or a larger batch may help."
    if cpu.mean > FULL_CPU:
        return f"the CPU is the limit, with {cpu.mean:.0f} % of its cores busy: prepare less per sample, or use more."
    return f"the CPU was {cpu.mean:.0f} % busy: more workers of the DataLoader, or a larger batch, may help."
