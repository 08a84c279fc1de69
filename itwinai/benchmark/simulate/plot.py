"""Predictions as a picture: efficiency by the number of workers, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from itwinai.benchmark.simulate.prediction import Prediction

_PARTS = {
    "compute": "compute",
    "other": "other",
    "optimizer": "optimizer",
    "exposed": "exposed communication",
    "waiting": "waiting for the slowest",
}


def plot_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Draw the efficiency of every strategy, and the parts of a step of the fastest one with the most workers.

    Args:
        predictions: of all strategies.
        path: of the file, which ends in .svg or .png.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    from itwinai.reporting.plotting import COLORS, axis_limits, new_figure, svg_of

    figure = new_figure(11.0, 3.6)
    left, right = figure.subplots(1, 2)
    lines: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        lines.setdefault(prediction.model.name, []).append(prediction)
    for index, (name, line) in enumerate(lines.items()):
        workers, efficiencies = [one.workers for one in line], [100 * one.efficiency for one in line]
        # Lines of similar strategies cover each other: later ones are thinner.
        width = 1.4 + 0.9 * (len(lines) - 1 - index)
        left.plot(workers, efficiencies, label=name, color=COLORS[index % len(COLORS)], marker=".", linewidth=width)
    left.axhline(70, color="#999999", linewidth=0.8, linestyle=":")
    left.set(xlabel="workers", ylabel="efficiency in %")
    left.set_ylim(axis_limits((100 * one.efficiency for one in predictions), from_zero=True))
    left.set_title(f"simulated, {predictions[0].scaling} scaling", fontsize="medium")
    counts = sorted({prediction.workers for prediction in predictions})
    left.set_xscale("log", base=2)
    left.set_xticks(counts, [str(number) for number in counts], rotation=45 if len(counts) > 8 else 0)
    left.set_xticks([], minor=True)
    left.legend(frameon=False, fontsize="small", loc="lower left")  # efficiencies begin at the top

    best = min(lines.values(), key=lambda line: line[-1].step)
    places, bottom = range(len(best)), [0.0] * len(best)
    for index, (part, label) in enumerate(_PARTS.items()):
        heights = [100 * getattr(one, part) / one.step for one in best]
        if any(heights):
            right.bar(places, heights, bottom=bottom, label=label, color=COLORS[index], width=0.75)
            bottom = [sum(pair) for pair in zip(bottom, heights, strict=True)]
    right.set_xticks(places, [str(one.workers) for one in best], rotation=45 if len(best) > 8 else 0)
    right.set(xlabel="workers", ylabel="% of the step", ylim=(0, 100))
    right.set_title(f"where a step of {best[0].model.name} goes", fontsize="medium")
    right.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(svg_of(figure), encoding="utf-8")
    else:
        figure.savefig(path, dpi=150)
