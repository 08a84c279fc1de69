"""Compare itwinai with other frameworks on the same training: ``python -m tests.performance.frameworks``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from itwinai.benchmark.records import Cell
from itwinai.benchmark.runner import interleaved
from tests.performance import framework_report as report
from tests.performance.framework_cases import BATCH_SIZES, MODEL_TITLES, QUICK, RAW, TITLES, Effort
from tests.performance.framework_report import Sample
from tests.performance.framework_runs import Weights, cell_of, difference, model_of, run_cell
from tests.performance.report import describe_machine


def main() -> int:
    """Measure, and print the tables.

    Returns:
        The exit code: 1 if a run has failed, or if the final losses differ by more than rounding.
    """
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, and folders are removed
    usual = QUICK if given.quick else Effort()
    effort = replace(usual, repeats=given.repeats or usual.repeats)
    facts = describe(effort)
    print("\n".join(f"{name:<12} {value}" for name, value in facts.items()), flush=True)

    cells = [
        cell_of(name, model, workers)
        for model in given.models
        for workers in given.workers
        for name in given.contenders
    ]
    samples: list[Sample] = []
    files: list[Path] = []
    for repeat in range(effort.repeats):
        order = [cell for cell, number in interleaved(cells, effort.repeats) if number == repeat]
        samples += measure(order, repeat, effort, given.out / "frameworks")
        files = report.write(samples, facts, given.out)  # after every repeat, so that a crash costs only one
    said = "\n".join(report.verdicts(samples))
    print(f"\n{report.tables(samples)}\n\n{said}\n\nwritten:", *files, flush=True)
    for failed in report.failures(samples):
        print(f"\n{failed}", file=sys.stderr)
    return 0 if report.sound(samples) else 1


def measure(order: Sequence[Cell], repeat: int, effort: Effort, logs: Path) -> list[Sample]:
    """Run each cell once, and compare the final weights.

    Args:
        order: the cells.
        repeat: 0 for the first.
        effort: how much to measure.
        logs: folder for what the runs print.
    """
    outcomes = []
    for cell in order:
        print(f"repeat {repeat + 1} of {effort.repeats}: {cell.strategy}, {model_of(cell)}, {cell.workers}", end=" ")
        sys.stdout.flush()
        outcome = run_cell(cell, repeat, effort, BATCH_SIZES[model_of(cell)], logs)
        print(f"{outcome.measurement.status}, {outcome.measurement.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
    references: dict[str, tuple[int, Weights]] = {}
    for outcome in outcomes:
        cell = outcome.measurement.cell
        fewest = references.get(model_of(cell), (cell.workers, None))[0]
        if cell.strategy == RAW and outcome.weights is not None and cell.workers <= fewest:
            references[model_of(cell)] = (cell.workers, outcome.weights)
    samples = []
    for outcome in outcomes:
        _, reference = references.get(model_of(outcome.measurement.cell), (0, None))
        apart = None
        if outcome.weights is not None and reference is not None and outcome.weights is not reference:
            apart = difference(outcome.weights, reference)
        samples.append(Sample(outcome.measurement, apart, outcome.durations))
    return samples


def describe(effort: Effort) -> dict[str, str]:
    """Return what the numbers depend on: the machine, versions, and how much is measured."""
    facts = describe_machine()
    try:
        facts["ray"] = version("ray")
    except PackageNotFoundError:
        facts["ray"] = "not installed"
    steps = ", ".join(f"{effort.steps[model]} of the {model} after {effort.warmup[model]}" for model in effort.steps)
    return {**facts, "repeats": str(effort.repeats), "steps": steps}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.frameworks", description=__doc__)
    parser.add_argument("--repeats", type=int, help="times that everybody is started anew (3)")
    parser.add_argument("--quick", action="store_true", help="see whether everything runs; the numbers mean little")
    parser.add_argument("--contenders", type=some_of(TITLES), default=list(TITLES), help=f"some of {','.join(TITLES)}")
    parser.add_argument(
        "--models", type=some_of(MODEL_TITLES), default=list(MODEL_TITLES), help=f"some of {','.join(MODEL_TITLES)}"
    )
    parser.add_argument("--workers", type=_numbers, default=[1, 2], help="numbers of workers (1,2)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder (%(default)s)")
    return parser.parse_args()


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return names


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers, such as 1,2") from None
    if any(number < 1 or size % number for number in numbers for size in BATCH_SIZES.values()):
        sizes = " and ".join(str(size) for size in BATCH_SIZES.values())
        raise argparse.ArgumentTypeError(
            f"the workers share batches of {sizes} samples: their number must divide these"
        )
    return numbers


if __name__ == "__main__":
    sys.exit(main())
