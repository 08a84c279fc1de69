"""Compare what was measured with the ratios that the repository keeps, and name what got slower.

A ratio is that of a contender to the base of its case, both measured by turns in one run: on another machine, or on a
busy one, it changes much less than times do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.performance.cases import COMPILED, ITWINAI
from tests.performance.measure import Result

KEPT = Path(__file__).with_name("kept_ratios.json")
CASES = ("off", "log", "default", "validate", "ddp")
TOLERANCE = 1.1
"""How much slower it may be: repeats on an idle machine differ by less."""


@dataclass(frozen=True)
class Comparison:
    """One contender in one case.

    Attributes:
        case: its name.
        contender: ItwinaiTrainer, with or without compiled steps.
        kept: its ratio in the repository; None if there is none.
        now: its ratio in this run.
        least: the smallest ratio of a single repeat.
    """

    case: str
    contender: str
    kept: float | None
    now: float
    least: float

    @property
    def is_slower(self) -> bool:
        """Whether it got slower, and not by chance: all repeats say so."""
        return self.kept is not None and self.least > TOLERANCE * self.kept

    @property
    def verdict(self) -> str:
        """What to say of it."""
        if self.kept is None:
            return "not kept yet"
        if self.is_slower:
            return f"SLOWER by {self.now / self.kept - 1:.0%}"
        return "faster: keep it" if self.now * TOLERANCE < self.kept else "as it was"


def compare(results: Sequence[Result], kept: Path = KEPT) -> list[Comparison]:
    """Return the comparisons of all contenders that are ours.

    Args:
        results: what was measured.
        kept: file of the ratios.
    """
    before = json.loads(kept.read_text()) if kept.exists() else {}
    return [
        Comparison(result.case.name, name, before.get(result.case.name, {}).get(name), own.ratio, own.ratio_range[0])
        for result in results
        for name, own in result.deciding.items()
        if name in (ITWINAI, COMPILED)
    ]


def keep(results: Sequence[Result], kept: Path = KEPT) -> None:
    """Write the ratios of these results to the repository; those of cases that were not measured stay."""
    ratios = json.loads(kept.read_text()) if kept.exists() else {}
    for one in compare(results, kept):
        ratios.setdefault(one.case, {})[one.contender] = round(one.now, 2)
    kept.write_text(json.dumps(ratios, indent=2, sort_keys=True) + "\n")


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons for a terminal."""
    rows = [("case", "contender", "kept", "now", "least", "")]
    for one in comparisons:
        before = "-" if one.kept is None else f"{one.kept:.2f}"
        rows.append((one.case, one.contender, before, f"{one.now:.2f}", f"{one.least:.2f}", one.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
