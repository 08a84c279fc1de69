"""Write the results as tables, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.performance.cases import CONTENDERS, ITWINAI, Case
from tests.performance.measure import Effort, Result, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = dict(zip(CONTENDERS, ("#8c8c8c", "#e0a030", "#8064b0", "#2080a0", "#30a060"), strict=True))


def describe_machine() -> dict[str, str]:
    """Return what the numbers depend on: the machine, and the versions of what was measured."""
    try:
        information = Path("/proc/cpuinfo").read_text()
    except OSError:
        information = ""
    model = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    described = {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": str(cores),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in ("torch", "lightning", "accelerate", "itwinai"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = "not installed"
    return described


def summary_table(results: Sequence[Result]) -> str:
    """Return the table of goals: one row per case, the base in units and the others as multiples of it."""
    rows = [["case", "judged by", *CONTENDERS, "goal", "itwinai reaches it"]]
    for result in results:
        case, summaries = result.case, result.deciding
        counted = case.quantity == "collectives of an epoch"
        cells = [_cell(case, name, summaries.get(name)) for name in CONTENDERS]
        goal = f"≤ {case.goal:g}" if counted else f"≤ {case.goal:g} x {case.base}"
        judged_by = "collectives/epoch" if counted else "CPU time" if case.clock == "cpu" else "wall time"
        rows.append([case.title, judged_by, *cells, goal, _verdict(case, summaries.get(ITWINAI))])
    return _markdown(rows)


def detail_table(results: Sequence[Result]) -> str:
    """Return both clocks of all contenders, in the cases that have clocks."""
    rows = [["case", "contender", "clock", "median", "p10", "x base", "x base, p10", "x base in each repeat"]]
    for result in results:
        for clock in ("cpu", "wall"):
            for name, summary in result.summaries(clock).items():
                times = [_duration(result.case, seconds) for seconds in (summary.median, summary.p10)]
                low, high = summary.ratio_range
                ratios = [f"{summary.ratio:.2f}", f"{summary.ratio_p10:.2f}", f"{low:.2f} to {high:.2f}"]
                rows.append([result.case.name, name, clock, *times, *ratios])
    return _markdown(rows)


def write(results: Sequence[Result], machine: dict[str, str], effort: Effort, folder: Path) -> list[Path]:
    """Write ``results.md``, ``results.json`` and ``results.png``.

    Args:
        results: one for each case.
        machine: what `describe_machine` returned.
        effort: how much was measured.
        folder: is made if it does not exist.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(
        [
            "# What the loop costs\n",
            *(f"- {name}: {value}" for name, value in machine.items()),
            f"- {effort.repeats} repeats of {effort.chunks} chunks of {effort.steps} steps\n",
            summary_table(results),
            "\n![x base, by case and contender](results.png)\n",
            "## Both clocks\n",
            detail_table(results),
            "",
        ]
    )
    (folder / "results.md").write_text(text)
    document = {
        "machine": machine,
        "effort": asdict(effort),
        "cases": [
            {
                **asdict(result.case),
                "summaries": {
                    value: {name: asdict(summary) for name, summary in result.summaries(value).items()}
                    for value in ("cpu", "wall", "collectives")
                },
                "samples": [asdict(sample) for sample in result.samples],
            }
            for result in results
        ],
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(results, machine, folder / "results.png")
    return [folder / f"results.{ending}" for ending in ("md", "json", "png")]


def plot(results: Sequence[Result], machine: dict[str, str], path: Path) -> None:
    """Draw grouped bars, the multiples of each case and contender, with the goal as a line.

    Cases with different units get axes of their own.

    Args:
        results: one for each case.
        machine: what `describe_machine` returned.
        path: the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    labels = {
        "time of a step": "time per step, x raw PyTorch",
        "time to the first step": "seconds to the first step, x lightning alone",
        "collectives of an epoch": "collectives per epoch (log scale)",
    }
    panels = [
        (label, [result for result in results if result.case.quantity == quantity])
        for quantity, label in labels.items()
    ]
    panels = [(label, members) for label, members in panels if members]
    widths = [max(len(members), 1.3) for _, members in panels]
    figure, all_axes = plt.subplots(
        1,
        len(panels),
        figsize=(max(8, 1.9 * sum(widths) + 1.5), 5),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    for axes, (label, members) in zip(all_axes[0], panels, strict=True):
        for position, result in enumerate(members):
            _draw_case(axes, position, result)
        axes.set_ylabel(label)
        axes.set_xticks(range(len(members)), [_two_lines(_axis_title(result.case)) for result in members])
        axes.set_xlim(-0.6, len(members) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.1)
    handles: list[Any] = [Patch(color=_COLOURS[name], label=name) for name in CONTENDERS]
    handles.append(Line2D([], [], color="black", linestyle="--", label="goal for itwinai"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(
        f"MLP 16-32-1, batch 16, one thread; {machine['processor']}, {machine['cores']} cores; torch "
        f"{machine['torch']}, lightning {machine['lightning']}.\nWhiskers: smallest and largest repeat.",
        fontsize="small",
        color="0.35",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_case(axes: Axes, position: int, result: Result) -> None:
    """Draw the bars of one case side by side, and the goal across them."""
    summaries = result.deciding
    counted = result.case.quantity == "collectives of an epoch"
    if counted:
        axes.set_yscale("log")
        axes.set_ylim(0.5, 2 * max(summary.ratio for summary in summaries.values()))
    width = 0.8 / len(summaries)
    for index, (name, summary) in enumerate(summaries.items()):
        x = position - 0.4 + width * (index + 0.5)
        low, high = summary.ratio_range
        # The median over all repeats need not lie between the ratios of single ones.
        whiskers = [[max(summary.ratio - low, 0)], [max(high - summary.ratio, 0)]]
        axes.bar(x, summary.ratio, width * 0.92, color=_COLOURS[name])
        if name != result.case.base and not counted:
            axes.errorbar(x, summary.ratio, whiskers, color="black", linewidth=1, capsize=2)
        text = f"{summary.ratio:.0f}" if counted else f"{summary.ratio:.2f}"
        axes.annotate(text, (x, max(summary.ratio, high)), (0, 3), textcoords="offset points", ha="center")
    axes.hlines(result.case.goal, position - 0.45, position + 0.45, color="black", linestyle="--", linewidth=1.2)


def _axis_title(case: Case) -> str:
    clock = {"cpu": "CPU time", "wall": "wall time"}[case.clock]
    return case.title if case.quantity == "collectives of an epoch" else f"{case.title} ({clock})"


def _two_lines(text: str) -> str:
    """Break a text at the space nearest to its middle."""
    spaces = [index for index, letter in enumerate(text) if letter == " "]
    if not spaces:
        return text
    middle = min(spaces, key=lambda index: abs(index - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def _cell(case: Case, name: str, summary: Summary | None) -> str:
    if summary is None:
        return "-"
    if case.quantity == "collectives of an epoch":
        return f"{summary.median:g}"
    return _duration(case, summary.median) if name == case.base else f"{summary.ratio:.2f} x"


def _duration(case: Case, seconds: float) -> str:
    return f"{seconds:.2f} s" if case.quantity == "time to the first step" else f"{seconds * 1e6:.0f} µs"


def _verdict(case: Case, summary: Summary | None) -> str:
    if summary is None:
        return "-"
    reached = summary.median if case.quantity == "collectives of an epoch" else summary.ratio
    return "yes" if round(reached, 2) <= case.goal else "no"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose columns are aligned, so that it can be read in a terminal as well."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
