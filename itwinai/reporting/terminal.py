"""Sections as lines of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from itwinai.reporting.sections import Section

WIDTH = 100


def in_terminal(title: str, sections: Sequence[Section]) -> str:
    """Return the facts and the advice of sections, as one screen.

    Args:
        title: what stands above them.
        sections: the sections; tables and pictures are for the page.
    """
    labels = [label for section in sections for label in section.facts]
    width = min(max((len(label) for label in labels), default=0), 24)
    lines = [f"── {title} {'─' * max(WIDTH - len(title) - 4, 2)}"]
    for section in sections:
        if not (section.facts or section.advice or section.missing):
            continue
        lines.append(section.title)
        for label, value in section.facts.items():
            lines += _wrapped(f"  {label:<{width}}  ", value)
        lines += [line for text in section.missing for line in _wrapped("  not measured: ", text)]
        lines += [line for text in section.advice for line in _wrapped("  -> ", text)]
    return "\n".join([*lines, "─" * WIDTH])


def _wrapped(head: str, text: str) -> list[str]:
    lines = textwrap.wrap(
        text.replace(" %", "\u00a0%"),  # a line does not end between a number and its unit
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace("\u00a0%", " %") for line in lines]
