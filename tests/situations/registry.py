"""All situations, by the heading under which the documentation tells of them."""

from __future__ import annotations

from pathlib import Path

from tests.situations import deepspeed, edges, engines, launching, loaders, stops
from tests.situations.situation import STRATEGIES, Situation

# Each file of this folder has a tuple SITUATIONS; the order here is that of the tables. Loggers come last: they
# leave threads in the process of the tests, which cannot be forked any more.
SITUATIONS: dict[str, tuple[Situation, ...]] = {
    "What scripts hold and set": launching.SITUATIONS,
    "Graphs, gradients and drift": engines.SITUATIONS,
    "What DeepSpeed's engines have to be helped with": deepspeed.SITUATIONS,
    "Loaders, samplers and random numbers": loaders.SITUATIONS,
    "Stops": stops.SITUATIONS,
    "Callbacks, tools and loggers, and workers that are not alike": edges.SITUATIONS,
}


def table(situations: tuple[Situation, ...]) -> str:
    """Return a Markdown table: a row for each situation, a column for each strategy."""
    lines = [f"| | {' | '.join(f'`{name}`' for name in STRATEGIES)} |", "| --- |" + " --- |" * len(STRATEGIES)]
    for situation in situations:
        cells = (_cell(situation.outcomes.get(strategy)) for strategy in STRATEGIES)
        lines.append(f"| {situation.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcome: str | None) -> str:
    if outcome is None:
        return "-"
    return outcome if outcome == "right" else f"`{outcome.partition(' ')[0]}`"


def tables() -> str:
    """Return all tables, with their headings."""
    return "\n\n".join(f"### {heading}\n\n{table(situations)}" for heading, situations in SITUATIONS.items())


def written_into(page: str) -> str:
    """Return the documentation's page with the tables in their place."""
    begin, end = "<!-- situations: python -m tests.situations.registry -->\n", "\n<!-- end of situations -->"
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n{tables()}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    path = Path(__file__).parents[2] / "docs/explanation/same-numbers.md"
    path.write_text(written_into(path.read_text()))
