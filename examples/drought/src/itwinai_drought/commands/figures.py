"""``itwinai drought figures``: draw series and maps of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

from itwinai_drought.figures import write_figures


def main(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigurationError: the stores do not belong together.
    """
    options = _parser().parse_args(arguments)
    paths = write_figures(
        options.store,
        options.predictions,
        options.output,
        indices=options.indices,
        predicted_indices=options.predicted_indices,
        cells=[int(cell) for cell in options.cells.split(",")] if options.cells else None,
        days=options.days,
        index=options.index,
        month=options.month,
    )
    print("\n".join(map(str, paths)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "itwinai drought figures",
        description="Draw predictions against the truth: series of some cells, maps of the score, density of all days; "
        "with indices, maps and series of droughts.",
    )
    parser.add_argument("--store", required=True, help="the store that was predicted from")
    parser.add_argument("--predictions", required=True, help="predictions on its grid: see itwinai drought grid")
    parser.add_argument("--indices", help="indices of the store: see itwinai drought indices")
    parser.add_argument("--predicted-indices", help="indices of the predictions, with --reference STORE")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figures")
    parser.add_argument("--cells", help="numbers of cells, such as 17,340 (default: a low, a middle and a high score)")
    parser.add_argument("--days", type=int, default=730, help="days of the series (default: the last 730)")
    parser.add_argument("--index", default="ssmi", help="the index on the map (default: ssmi)")
    parser.add_argument("--month", help="month of the map, such as 2009-07 (default: the driest)")
    return parser
