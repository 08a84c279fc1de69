"""Figures and the table of `itwinai drought report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from itwinai_drought.report import HEADLINE, ORDER, SURROGATE
from itwinai_drought.speed import Speed

# Colours that differ for colour-blind readers too (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def draw_scores(results: Mapping[str, Mapping[str, Sequence[Any]]], targets: Sequence[str], path: Path) -> None:
    """Draw the NSE of all models on new cells in new years, a panel for each target."""
    models = [name for name in ORDER if name in results[HEADLINE]]
    figure = Figure(figsize=(3.1 * len(targets), 2.6), layout="constrained")
    panels = figure.subplots(1, len(targets), sharey=True)
    for panel, target in zip(np.atleast_1d(panels), targets, strict=True):
        for place, name in enumerate(models):
            values = np.array([one[target]["nse"] for one in results[HEADLINE][name]])
            colour = _COLOURS[5] if name == SURROGATE else "#8a97a3"
            panel.barh(place, max(values.mean(), -0.5), color=colour, height=0.7)
            panel.plot(np.clip(values, -0.5, 1), [place] * len(values), "k|", markersize=7)
            inside = values.mean() > 0.6
            panel.text(
                values.min() - 0.03 if inside else max(values.max(), 0) + 0.03,
                place,
                f"{values.mean():.2f}",
                va="center",
                ha="right" if inside else "left",
                color="white" if inside else "black",
                fontsize=8,
            )
        panel.set(title=target, xlim=(-0.5, 1), xlabel="NSE")
        panel.set_yticks(range(len(models)), models)
        panel.axvline(0, color="black", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_speed(speeds: Sequence[Speed], path: Path) -> None:
    """Draw cell-years per second of both models against the number of cells."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    panel = figure.subplots()
    cells = np.array([speed.cells for speed in speeds])
    panel.loglog(cells, cells / [speed.model for speed in speeds], "o-", color=_COLOURS[0], label="hydrological model")
    panel.loglog(cells, cells / [speed.surrogate for speed in speeds], "s-", color=_COLOURS[5], label=SURROGATE)
    panel.set(xlabel="cells computed together", ylabel="cell-years per second, one thread")
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3, linewidth=0.5)
    figure.savefig(path, dpi=110)


def speed_table(speeds: Sequence[Speed]) -> str:
    """Return the time of a year by grid size, as Markdown."""
    lines = ["Seconds for a year, on one thread:", "", "| cells | hydrological model | LSTM | LSTM is faster by |"]
    lines += ["| ---: | ---: | ---: | ---: |"]
    lines += [f"| {speed.cells} | {speed.model:.2g} | {speed.surrogate:.2g} | {speed.ratio:.3g} |" for speed in speeds]
    return "\n".join(lines) + "\n"
