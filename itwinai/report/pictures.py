"""Turn figures of matplotlib into pictures that can stand in a page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that differ for colour-blind readers too: those of Okabe and Ito (2008), and two more.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#882255")


def new_figure(width: float = 7.0, height: float = 3.0) -> Figure:
    """Return an empty figure; its size is in inches. No global state of matplotlib is touched.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    from itwinai.errors import require

    require("matplotlib", "Install it with `pip install 'itwinai[watch]'`.", "A picture")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: Figure) -> str:
    """Return a figure as the text of an ``<svg>`` element, which scales with the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "itwinai"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
