"""`itwinai check`: named checks of the module that a config describes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from itwinai.checks.registry import CHECKS, choose
from itwinai.cli.arguments import ArgumentParser
from itwinai.config.source import named_configs
from itwinai.errors import ConfigurationError

_EPILOG = """
Every run trains on a few batches of your data, on the CPU, in a child process with a time limit. Options of the
trainer that change numbers are kept (precision, gradient clipping, accumulation...); loggers and checkpoints are off,
and nothing is written but to a temporary folder. All other flags are those of `itwinai fit`: --data.batch_size=16.

examples:
  itwinai check -c config.yaml
  itwinai check -c config.yaml --checks resume,same_weights --strategies ddp,horovod
  itwinai check -c config.yaml --expect-failure "same_weights=draws negatives on each rank"

docs/how-to/check-a-module.md says what each check does.
"""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``check``.

    Returns:
        The exit code: 1 if a check is red.

    Raises:
        ConfigurationError: the config or a name is wrong.
    """
    given, arguments = _parser().parse_known_args(argv)
    if given.list:
        print(list_text())
        return 0
    given.config = named_configs(given.config, "itwinai check")
    checks = None if given.checks is None else given.checks.split(",")
    choose(checks)
    expected = dict(_expected(one) for one in given.expect_failure)
    choose([*expected] or None)
    # As for a script: the config names classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    try:
        return _check(given, arguments, checks, expected)
    except KeyboardInterrupt:
        print("error: interrupted; no process was left behind", file=sys.stderr)
        return 130


def _check(
    given: argparse.Namespace, arguments: list[str], checks: Sequence[str] | None, expected: dict[str, str]
) -> int:
    from itwinai.checks.checker import run_checks
    from itwinai.checks.session import installed_strategies
    from itwinai.checks.subject import ConfiguredObjects
    from itwinai.cli.check_display import CheckDisplay
    from itwinai.cli.signals import stop_on_signals
    from itwinai.config.lightning_cli import parsed

    configs = [part for config in given.config for part in ("-c", config)]
    command_line = parsed([*configs, *arguments])
    subject = ConfiguredObjects(command_line.as_dict(), command_line.config.get("tune") or {})
    wanted = [] if given.strategies is None else [name for name in given.strategies.split(",") if name]
    strategies = wanted or installed_strategies()
    with stop_on_signals(), CheckDisplay([one.name for one in choose(checks)]) as display:
        display.head(subject.module_class(), strategies)
        report = run_checks(
            subject, checks, strategies, expected, given.limit, display.doing, display.tick, display.done
        )
    display.conclude(report)
    if given.json is not None:
        import json

        from itwinai.io.atomic import write_whole

        write_whole(given.json, json.dumps(report.as_dict(), indent=2) + "\n")
    return 0 if report.ok else 1


def list_text() -> str:
    """Return the names of all checks, and what each asks for."""
    width = max(map(len, CHECKS))
    return "\n".join(f"{check.name:<{width}}  {check.asks}" for check in CHECKS.values())


def _expected(text: str) -> tuple[str, str]:
    name, equals, reason = text.partition("=")
    if not equals or not reason.strip():
        raise ConfigurationError(f"--expect-failure {text}: write NAME=REASON, as in 'resume=the stream has no state'.")
    return name.strip(), reason.strip()


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai check",
        usage="itwinai check [-c CONFIG] [flags]",
        description="Check that a module trains, resumes and evaluates alike, wherever it runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        metavar="FILE",
        help="config file of `itwinai fit`; given several times, the later ones win [config.yaml]",
    )
    parser.add_argument("--checks", metavar="A,B", help="the checks to run (default: all)")
    parser.add_argument("--strategies", metavar="A,B", help="the strategies to compare (default: all installed)")
    parser.add_argument("--list", action="store_true", help="list the checks, and run none")
    parser.add_argument(
        "--expect-failure",
        action="append",
        default=[],
        metavar="NAME=REASON",
        help="a check that is known to fail: it is red only when it passes",
    )
    parser.add_argument(
        "--limit", type=float, default=120.0, metavar="SECONDS", help="time for each run (default: %(default)g)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results for programs, too")
    return parser
