"""Run the checks: ``python -m tests.gpu --out DIR --minutes 8``, in the root of the repository."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from itwinai.compat.deepspeed import DEEPSPEED_MODULES
from itwinai.launchers.fork import why_not_fork
from tests.gpu import results
from tests.gpu.check import Check
from tests.gpu.machine import facts, has_cuda
from tests.gpu.registry import all_checks
from tests.gpu.runner import Outcome, run_all

NO_CUDA = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run checks and leave results; return the exit code: 1 if a check is not passed, 3 without CUDA."""
    checks = all_checks()
    given = _parser(checks).parse_args(argv)
    if not given.dry and not has_cuda():
        print("tests.gpu: torch finds no CUDA device here; --dry runs the checks on the CPU.", file=sys.stderr)
        return NO_CUDA
    if unsafe := why_not_fork():
        print(f"tests.gpu: each check imports everything again, because {unsafe}.", file=sys.stderr)
    out: Path = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    machine = facts()
    if given.dry:
        import_for_all()
    chosen = [check for check in checks if not given.only or check.name in given.only or check.group in given.only]

    def tell(outcomes: Sequence[Outcome]) -> None:
        print(results.line(outcomes[-1]), flush=True)
        results.write(out, machine, outcomes, given.dry)

    try:
        outcomes = run_all(chosen, out, given.dry, given.minutes * 60, tell)
    except KeyboardInterrupt:
        print(f"interrupted; what there is until now is in {out}", file=sys.stderr)
        return 130
    passed = sum(outcome.status == "passed" for outcome in outcomes)
    print(f"{passed} of {len(outcomes)} checks passed; see {out / 'results.md'}")
    return 1 if any(outcome.is_bad for outcome in outcomes) else 0


def import_for_all() -> None:
    """Import once what several checks need; only dry, for on a GPU DeepSpeed would look for it in this process."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in (*DEEPSPEED_MODULES, "horovod.torch", "itwinai.cli.fit", "itwinai.config.lightning_cli"):
        with suppress(ModuleNotFoundError):  # its checks say that it is not installed
            import_module(name)


def _parser(checks: Sequence[Check]) -> argparse.ArgumentParser:
    names = [check.name for check in checks]
    groups = list(dict.fromkeys(check.group for check in checks))
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=f"Checks: {', '.join(names)}.")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, results.md and all output")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all checks together (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[*names, *groups], metavar="NAME", help="some checks, or groups"
    )
    parser.add_argument("--dry", action="store_true", help="run on the CPU, with tiny sizes, to test the checks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
