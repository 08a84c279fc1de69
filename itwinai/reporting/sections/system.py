"""The report of `itwinai.callbacks.SystemMonitor`: what a fit used."""

from __future__ import annotations

from collections.abc import Iterator

from itwinai.errors import MissingPackageError
from itwinai.monitoring.energy import EnergyUse
from itwinai.monitoring.monitor_summary import MonitorSummary, NodeSummary
from itwinai.monitoring.time_series import Quantity
from itwinai.reporting.formatting import energy_text, percent_text, time_text
from itwinai.reporting.plotting import FEWEST, lines_figure, picture_of
from itwinai.reporting.sections import Picture, Section, Table
from itwinai.reporting.sections.system_recommendations import advice

DRAWN = 4
"""Most nodes of which pictures are drawn."""

_LABELS = {
    "cpu_percent": "CPU of the run, % of its cores",
    "running_processes": "processes of the run that run at once",
    "processes": "processes of the run",
    "memory_gb": "memory of the run, GB (RSS: what processes share counts for each)",
    "memory_pss_gb": "memory of the run, GB (PSS: what processes share counts once)",
    "disk_read_mb_per_s": "read from storage by the run, MB/s",
    "disk_written_mb_per_s": "written to storage by the run, MB/s",
    "node_cpu_percent": "CPU of the whole node, %",
    "node_memory_percent": "memory in use on the whole node, %",
    "node_memory_available_gb": "memory available on the node, GB",
    "network_received_mb_per_s": "received by the whole node, MB/s (without RDMA)",
    "network_sent_mb_per_s": "sent by the whole node, MB/s (without RDMA)",
}
_METHODS = {"counter": "counter of the hardware", "power": "power over time (trapezoidal rule)"}


def system_sections(summary: MonitorSummary) -> list[Section]:
    """Return the sections about the system during a fit."""
    pictures, undrawn = _pictures(summary)
    return [
        Section(
            title="System",
            facts=dict(_facts(summary)),
            tables=[table for node in summary.nodes for table in _tables(node)],
            pictures=pictures,
            advice=advice(summary),
            missing=[*_missing(summary), *undrawn, *summary.missing],
        )
    ]


def _facts(summary: MonitorSummary) -> Iterator[tuple[str, str]]:
    nodes = summary.nodes
    if used := [node.quantities["cpu_percent"].mean for node in nodes if "cpu_percent" in node.quantities]:
        cores = " + ".join(node.sampled.facts["cores"] for node in nodes if "cores" in node.sampled.facts)
        yield "CPU", f"{sum(used) / len(used):.0f} % of {cores} cores on average"
    if peaks := [node.quantities["memory_gb"].peak for node in nodes if "memory_gb" in node.quantities]:
        whole = [
            node.quantities["node_memory_percent"].peak for node in nodes if "node_memory_percent" in node.quantities
        ]
        of_node = f"; at most {max(whole):.0f} % of the node's memory in use" if whole else ""
        yield "memory", f"{max(peaks):.2f} GB at most{' on a node' * (len(nodes) > 1)}{of_node}"
    if gpus := [gpu for node in nodes for gpu in node.of_gpus("utilization_percent").values()]:
        memory = [gpu.peak for node in nodes for gpu in node.of_gpus("memory_gb").values()]
        most = f", {max(memory):.1f} GB at most" if memory else ""
        yield "GPU", f"{sum(gpu.mean for gpu in gpus) / len(gpus):.0f} % utilization on average of {len(gpus)}{most}"
    yield from _energy_facts(summary)
    samples = sum(node.cost.samples for node in nodes)
    per_sample = sum(node.cost.cpu_seconds for node in nodes) / max(samples, 1)
    share = max((node.cost.share for node in nodes), default=0.0)
    yield "cost of sampling", f"{samples} samples, {time_text(per_sample)} each, {percent_text(share)} of one core"


def _energy_facts(summary: MonitorSummary) -> Iterator[tuple[str, str]]:
    if summary.joules is None:
        yield "energy", "not measured"
        return
    kinds: dict[str, float] = {}
    for node in summary.nodes:
        for use in node.energy:
            kind = "GPUs" if use.source.startswith("gpu") else f"{use.source.rstrip('0123456789 ')}s of all processes"
            kinds[kind] = kinds.get(kind, 0.0) + use.joules
    yield "energy", f"{_wh(summary.joules)} ({', '.join(f'{kind}: {_wh(joules)}' for kind, joules in kinds.items())})"
    if summary.joules_per_sample is not None:
        yield "energy per sample", f"{energy_text(summary.joules_per_sample)}, validation included"
    elif summary.joules_per_batch is not None:
        yield "energy per batch", f"{energy_text(summary.joules_per_batch)}, validation included"
    if (emissions := summary.emissions) is not None:
        yield (
            "CO2",
            f"{1000 * emissions.kilograms:.3g} g CO2eq for what was measured, without cooling ({emissions.place}: "
            f"{emissions.grams_per_kilowatt_hour:.0f} g/kWh, {emissions.source})",
        )


def _tables(node: NodeSummary) -> Iterator[Table]:
    facts = "; ".join(f"{name}: {value}" for name, value in node.sampled.facts.items())
    rows = [
        (_label(name), _number(quantity.mean), _number(quantity.peak), str(quantity.samples))
        for name, quantity in sorted(node.quantities.items(), key=_order)
    ]
    workers = f"{node.workers} worker{'s' * (node.workers > 1)}"
    yield Table(("quantity", "mean", "highest", "samples"), rows, f"{node.name} ({workers}; {facts})")
    if node.energy:
        uses = [(use.source, _wh(use.joules), f"{use.seconds:.0f} s", _METHODS[use.method]) for use in node.energy]
        yield Table(("source", "energy", "covers", "by"), uses, f"Energy on {node.name}")


def _order(item: tuple[str, Quantity]) -> tuple[int, str]:
    names = list(_LABELS)
    return (names.index(item[0]), "") if item[0] in names else (len(names), item[0])


def _label(name: str) -> str:
    if name in _LABELS:
        return _LABELS[name]
    gpu, _, what = name.partition("_")
    units = {"percent": "%", "gb": "GB (by whomever)", "w": "W", "c": "°C"}
    what, _, unit = what.rpartition("_")
    return f"{gpu} {what}, {units.get(unit, unit)}"


def _missing(summary: MonitorSummary) -> Iterator[str]:
    for node in summary.nodes:
        where = f"{node.name}: " if len(summary.nodes) > 1 else ""
        by_reason: dict[str, list[str]] = {}
        for name, reason in node.missing.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            yield f"{where}{', '.join(names)}: {reason}"
        for use in node.energy:
            if _is_partial(use, node):
                covered = f"only {use.seconds:.0f} s of {node.cost.seconds:.0f} s are covered"
                yield f"{where}energy of {use.source}: {covered}"


def _is_partial(use: EnergyUse, node: NodeSummary) -> bool:
    """Return whether an energy leaves out more than what lies between opening and the first sample."""
    return node.cost.seconds - use.seconds > max(1.0, 0.05 * node.cost.seconds)


def _pictures(summary: MonitorSummary) -> tuple[list[Picture], list[str]]:
    """Return pictures, and what to say of those that could not be drawn."""
    pictures: list[Picture] = []
    try:
        for node in summary.nodes[:DRAWN]:
            gpus = node.of_gpus("utilization_percent")
            busy = {"CPU of the run": node.quantities.get("cpu_percent"), **gpus}
            memory = {"memory of the run": node.quantities.get("memory_gb"), **node.of_gpus("memory_gb")}
            for title, unit, lines in (("Utilization", "%", busy), ("Memory", "GB", memory)):
                points = {
                    name: ([at for at, _ in quantity.course], [value for _, value in quantity.course])
                    for name, quantity in lines.items()
                    if quantity is not None
                }
                if any(len(places) >= FEWEST for places, _ in points.values()):
                    of = f", {next(iter(points))}" if len(points) == 1 else ""
                    figure = lines_figure(points, "seconds", unit, from_zero=True)
                    pictures.append(picture_of(f"{title} on {node.name}{of}", figure))
    except MissingPackageError as error:
        return [], [f"pictures: {error}"]
    if len(summary.nodes) > DRAWN:
        return pictures, [f"pictures of {len(summary.nodes) - DRAWN} nodes: only those of the first {DRAWN} are drawn"]
    return pictures, []


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _wh(joules: float) -> str:
    return f"{joules / 3600:.3g} Wh"
