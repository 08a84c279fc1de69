"""Write what the checks have found: results.json and results.md, whole after each check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from itwinai.io.atomic import write_whole
from tests.gpu.check import Figure
from tests.gpu.runner import Outcome


def write(out: Path, machine: Mapping[str, str], outcomes: Sequence[Outcome], dry: bool) -> None:
    """Write both files.

    Args:
        out: the folder.
        machine: what it is.
        outcomes: until now.
        dry: whether the checks ran on the CPU.
    """
    content = {"dry": dry, "machine": dict(machine), "checks": [asdict(outcome) for outcome in outcomes]}
    write_whole(out / "results.json", json.dumps(content, indent=1).encode())
    write_whole(out / "results.md", _page(machine, outcomes, dry).encode())


def line(outcome: Outcome) -> str:
    """Return a line about a check."""
    bad = [figure_text(figure) for figure in outcome.figures if not figure.ok]
    reason = "; ".join(bad) or (outcome.why.splitlines()[-1] if outcome.why else "")
    return f"{outcome.status:<13} {outcome.name:<24} {outcome.seconds:6.1f} s  {reason}".rstrip()


def figure_text(figure: Figure) -> str:
    """Return a figure in words."""
    value = f"{figure.value:.5g}" if isinstance(figure.value, float) else str(figure.value)
    wanted = f" ({'wanted' if figure.ok else 'WANTED'}: {figure.wanted})" if figure.wanted else ""
    return f"{figure.name}: {' '.join(value.split())}{f' {figure.unit}' if figure.unit else ''}{wanted}"


def _page(machine: Mapping[str, str], outcomes: Sequence[Outcome], dry: bool) -> str:
    parts = ["# What the GPU checks have found", ""]
    if dry:
        parts += ["A dry run on the CPU, with tiny sizes: nothing here was measured on a GPU.", ""]
    parts += [f"- {name}: {value}" for name, value in machine.items()]
    parts += ["", "| check | result | seconds | figures |", "| --- | --- | ---: | --- |"]
    for outcome in outcomes:
        told = "<br>".join(figure_text(figure) for figure in outcome.figures) or outcome.why.partition("\n")[0]
        title = f"`{outcome.name}`: {outcome.title}"
        parts.append(f"| {title} | {outcome.status} | {outcome.seconds:.1f} | {told.replace('|', '/')} |")
    for outcome in outcomes:
        if outcome.is_bad and outcome.why:
            parts += ["", f"## {outcome.name}: {outcome.status}", "", "```", outcome.why, "```"]
    return "\n".join(parts) + "\n"
