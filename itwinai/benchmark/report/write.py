"""Write the page of a benchmark, and its pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from itwinai.benchmark.records import BenchmarkRecord
from itwinai.benchmark.report.style import DOTS_PER_INCH, Drawn
from itwinai.errors import require
from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import origin

PAGE = "report.html"
PICTURES = "pictures"


def write_report(record: BenchmarkRecord, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html``, which needs no network, and each picture as SVG and PNG below ``pictures``.

    Files of these names are replaced.

    Args:
        record: the benchmark.
        folder: for the files; it is made if it does not exist.

    Returns:
        The path of the page.

    Raises:
        MissingPackageError: what draws the pictures or fits the laws is not installed.
        OSError: a file could not be written.
    """
    for package in ("matplotlib", "jinja2", "scipy"):
        require(package, "Install it with `pip install 'itwinai[benchmark]'`.", "The report of a benchmark")
    from itwinai.benchmark.report.sections import benchmark_page
    from itwinai.reporting.html import page

    sections, drawn, lead = benchmark_page(record)
    path = Path(folder) / PAGE
    write_whole(path, page(f"Benchmark of {record.name}", sections, lead, _about(record)))
    write_pictures(drawn, Path(folder) / PICTURES)
    return path


def _about(record: BenchmarkRecord) -> list[str]:
    """Return what was run, when, with what."""
    cells = [one.cell for one in record.measurements]
    strategies = ", ".join(dict.fromkeys(cell.strategy for cell in cells))
    workers = ", ".join(map(str, sorted({cell.workers for cell in cells})))
    facts = record.facts
    return origin(
        f"{strategies} with {workers} workers" if cells else "",
        begun=facts.get("begun", ""),
        command=facts.get("command", ""),
        version=facts.get("itwinai", ""),
    )


def write_pictures(drawn: Sequence[Drawn], folder: Path) -> None:
    """Write pictures as SVG and as PNG.

    Args:
        drawn: the pictures.
        folder: for the files; it is made if it does not exist.

    Raises:
        OSError: a file could not be written.
    """
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
    seen = Counter[str]()
    for one in drawn:
        seen[one.name] += 1
        name = one.name if seen[one.name] == 1 else f"{one.name}-{seen[one.name]}"
        (folder / f"{name}.svg").write_text(one.svg, encoding="utf-8")
        one.figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
