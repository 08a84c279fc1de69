"""Run the benchmark: ``tox run -e bench``, or ``python -m tests.performance`` in the root of the repository."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.performance import regression, report
from tests.performance.cases import CASES, Case
from tests.performance.measure import Effort, Result, Sample, measure_collectives, measure_steps
from tests.performance.startup import measure_startup
from tests.performance.workers import ContenderFailed

QUICK = Effort(repeats=1, chunks=3, steps=20)
GATE = Effort(repeats=3)
OTHERS = (
    ("checkpoints",),
    ("watching",),
    ("mlflow_logging", "--repeats", "1"),
    ("searches", "--repeats", "1"),
    ("search_report",),
    ("frameworks",),
    ("launching",),
)
"""What else is compared, each by a module of its own."""


def main() -> int:
    """Measure the cases that are asked for, and report them.

    Returns:
        The exit code: 1 if a case could not be measured, or with ``--gate`` if something got slower. A goal that is
        missed is a result, not a failure.
    """
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contenders and their folders are cleared away
    usual = QUICK if given.quick else GATE if given.gate else Effort()
    effort = Effort(given.repeats or usual.repeats, given.chunks or usual.chunks, given.steps or usual.steps)
    machine = report.describe_machine()
    print("\n".join(f"{name:<12} {value}" for name, value in machine.items()), flush=True)

    results: list[Result] = []
    failures: list[str] = []
    files: list[Path] = []
    for name in given.cases:
        try:
            results.append(Result(CASES[name], tuple(measure(CASES[name], effort, tell))))
        except ContenderFailed as failure:
            failures.append(f"not measured: {name}: {failure}")
        except KeyboardInterrupt:
            failures.append("interrupted; what had been measured until then is above")
            break
        else:  # after every case, so that a crash does not lose those before
            files = report.write(results, machine, effort, given.out)
    tell("")
    if results:
        print(f"\n{report.summary_table(results)}\n\n{report.detail_table(results)}\n\nwritten:", *files, flush=True)
    for failed in failures:
        print(f"\n{failed}", file=sys.stderr)
    if given.keep:
        regression.keep(results)
        print(f"kept: {regression.KEPT}")
    if given.gate:
        comparisons = regression.compare(results)
        print(f"\n{regression.table(comparisons)}")
        return 1 if failures or any(one.is_slower for one in comparisons) else 0
    others = (
        [] if not given.all else [[sys.executable, "-m", f"tests.performance.{name}", *rest] for name, *rest in OTHERS]
    )
    codes = [subprocess.run(command).returncode for command in others]
    return 1 if failures or any(codes) else 0


def measure(case: Case, effort: Effort, tell: Callable[[str], None]) -> list[Sample]:
    """Measure one case in the way that suits it."""
    if case.quantity == "collectives of an epoch":
        return measure_collectives(case, tell)
    if case.quantity == "time to the first step":
        return measure_startup(case, effort.repeats, tell)
    return measure_steps(case, effort, tell)


def tell(progress: str) -> None:
    """Show what is being measured, on a line that the next one overwrites if somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
    elif progress:
        print(progress, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance", description="Compare what the loops cost.")
    parser.add_argument("--cases", type=case_names, help=f"some of {','.join(CASES)} (all)")
    parser.add_argument("--repeats", type=int, help="times that every contender is started anew (5)")
    parser.add_argument("--chunks", type=int, help="chunks of steps per repeat, taken by turns (10)")
    parser.add_argument("--steps", type=int, help="steps per chunk (100)")
    parser.add_argument("--quick", action="store_true", help="see whether everything runs; the numbers mean little")
    parser.add_argument("--all", action="store_true", help="then compare everything else: an hour")
    parser.add_argument(
        "--gate", action="store_true", help="compare with the ratios that the repository keeps; exit code 1 if slower"
    )
    parser.add_argument("--keep", action="store_true", help="keep these ratios for later gates; on an idle machine")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="folder for the results (%(default)s)"
    )
    given = parser.parse_args()
    given.cases = given.cases or list(regression.CASES if given.gate else CASES)
    return given


def case_names(text: str) -> list[str]:
    """Split the value of ``--cases``."""
    names = text.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no case {', '.join(unknown)}; the cases are {', '.join(CASES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
