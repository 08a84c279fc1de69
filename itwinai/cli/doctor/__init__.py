"""`itwinai doctor`: what is installed and usable on this machine, and whether every strategy really trains here.

All that may hang or crash (imports of packages with native code, workers, daemons) runs in child processes with a
time limit. This process itself imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from itwinai.cli.arguments import ArgumentParser
from itwinai.cli.doctor.child_process import summarize, write_record
from itwinai.cli.doctor.machine import describe_machine
from itwinai.cli.doctor.packages import INSTALL, describe_installed, inspect, inspect_here
from itwinai.cli.doctor.progress import ProgressLine
from itwinai.cli.doctor.report import (
    format_end,
    format_header,
    format_installed,
    format_machine,
    format_trial,
    name_width,
)
from itwinai.cli.doctor.strategy_check import try_strategy
from itwinai.cli.doctor.strategy_check_worker import WORKERS, probe_strategy
from itwinai.cli.signals import stop_on_signals
from itwinai.errors import did_you_mean
from itwinai.plugins import STRATEGIES, find_plugins
from itwinai.strategies.registry import STRATEGY_NAMES

DEFAULT_STRATEGIES = ("ddp", "deepspeed_stage_2", "horovod", "ray")

_DESCRIPTION = """\
Show what is installed, what this machine has, and which strategies work here.

Each strategy trains a tiny model with two workers of this machine: on GPUs if there are two, else on the CPU. It works
if its all-reduce adds up and if the trained weights are those of one process. The exit code is 1 if something that is
installed does not work.
"""


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def all_names() -> list[str]:
    """Return the names of strategies, those of plugins last."""
    return list(dict.fromkeys([*STRATEGY_NAMES, *(plugin.name for plugin in find_plugins(STRATEGIES))]))


def strategy_names(text: str) -> list[str]:
    """Split and check what was given to ``--strategies``.

    Args:
        text: names with commas between them.

    Raises:
        argparse.ArgumentTypeError: a name is unknown; the message holds the nearest.
    """
    names = [name for name in text.lower().replace(" ", "").split(",") if name]
    known = all_names()
    for name in names:
        if name not in known and name.removeprefix("ray_") not in known[len(STRATEGY_NAMES) :]:
            hint = did_you_mean(name, known)
            raise argparse.ArgumentTypeError(
                f"there is no strategy '{name}' to try.{hint} Choose from {', '.join(known)}."
            )
    if not names:
        raise argparse.ArgumentTypeError("it names no strategy")
    return list(dict.fromkeys(names))


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai doctor", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--strategies",
        type=strategy_names,
        metavar="A,B",
        default=list(DEFAULT_STRATEGIES),
        help=f"the strategies to try (default: {','.join(DEFAULT_STRATEGIES)})",
    )
    choice.add_argument("--all", action="store_true", help="try every strategy")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        default=120.0,
        help="time for each strategy, and for the imports before (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print a record for programs")
    # What this command starts itself with, for each part that may hang or crash.
    parser.add_argument("--probe", metavar="STRATEGY", help=argparse.SUPPRESS)
    parser.add_argument("--inspect", choices=["machine", *INSTALL], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """Run ``itwinai doctor``.

    Args:
        argv: the arguments after ``doctor``.

    Returns:
        The exit code: 0, 1 if something that is installed does not work, 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    if args.probe or args.inspect:
        return _be_child(args.probe, args.inspect, args.out)
    try:
        with (
            stop_on_signals(),
            ProgressLine(sys.stderr) as progress,
            tempfile.TemporaryDirectory(prefix="itwinai-doctor-", ignore_cleanup_errors=True) as folder,
        ):
            strategies = all_names() if args.all else args.strategies
            return _examine(strategies, args.timeout, args.json, Path(folder), progress)
    except KeyboardInterrupt:
        print("error: interrupted; no process was left behind", file=sys.stderr)
        return 130


def _be_child(strategy: str | None, part: str | None, out: Path) -> int:
    """Do what a child is for, and leave a record of the result or of the exception."""
    try:
        if part:
            inspect_here(part, out)
        else:
            assert strategy is not None
            write_record(out, {"measured": asdict(probe_strategy(strategy))})
    except Exception as error:  # any error is the answer
        from itwinai.errors import WorkerError

        # A worker that died without an exception has left what it had to say in the log.
        text = "" if isinstance(error, WorkerError) else traceback.format_exc()
        write_record(out, {"error": summarize(error), "traceback": text})
        return 1
    return 0


def _examine(strategies: Sequence[str], timeout: float, as_json: bool, folder: Path, progress: ProgressLine) -> int:
    """Look at everything, print it while it becomes known, and return the exit code."""
    from itwinai import __version__

    def say(text: str = "") -> None:
        if not as_json:
            progress.clear()
            print(text, flush=True)

    say(f"itwinai {__version__}\n")
    facts = inspect(timeout, folder, progress)
    installed, machine = describe_installed(facts), describe_machine(facts)
    say(format_installed(installed))
    say(format_machine(machine))
    device = "GPUs" if len(installed["torch"].get("gpus", [])) >= WORKERS else "the CPU"
    say(f"Strategies, each with {WORKERS} workers on {device}")
    width = name_width(strategies)
    say(format_header(width))
    trials = []
    for index, name in enumerate(strategies, 1):
        progress.start(f"trying {name} ({index} of {len(strategies)})")
        trials.append(try_strategy(name, timeout, folder, progress))
        say(format_trial(trials[-1], width))
    progress.clear()
    broken = [name for name, package in installed.items() if "error" in package]
    failed = [trial for trial in trials if trial.error]
    if as_json:
        record = {
            "itwinai": __version__,
            "installed": installed,
            "machine": machine,
            "strategies": [trial.record() for trial in trials],
            "ok": not broken and not failed,
        }
        print(json.dumps(record, indent=2))
    else:
        print(format_end(trials, broken))
    return 1 if broken or failed else 0
