"""The command ``itwinai install``: build and install packages that pip alone cannot."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from itwinai.cli.arguments import ArgumentParser
from itwinai.errors import InstallError

_DESCRIPTION = """\
Build Horovod for the torch that is installed here and install it into this Python environment.

Horovod has no ready-made wheels, and its last release does not compile against a current torch as it is.
This command checks what the build needs, compiles (some minutes), and keeps the wheel: the next environment
with the same torch, Python and options gets it in seconds. Horovod's own HOROVOD_* variables and CXX are
respected, as in

    HOROVOD_WITH_MPI=1 itwinai install horovod
"""


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a release number such as 0.28.1")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="itwinai install", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", choices=["horovod"], help="what to install")
    parser.add_argument("--version", type=_version, default="0.28.1", help="release (default: %(default)s)")
    parser.add_argument(
        "--cache-dir",
        "--wheel-dir",
        dest="cache_dir",
        type=Path,
        metavar="DIR",
        help="where wheels are kept (default: itwinai/wheels in $XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument("--force", action="store_true", help="build even if a finished wheel is cached")
    parser.add_argument("--cached-only", action="store_true", help="install a cached wheel; without one, do nothing")
    parser.add_argument("--wheel-only", action="store_true", help="fill the cache, install nothing")
    parser.add_argument("--dry-run", action="store_true", help="print plan and checks, change nothing")
    parser.add_argument("--verbose", action="store_true", help="show the whole build output")
    return parser


def main(argv: list[str]) -> int:
    """Run ``itwinai install``.

    Args:
        argv: the arguments after ``install``.

    Returns:
        The exit code: 0, 1 after an error (printed to stderr), 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    if os.name != "posix":
        print("error: Horovod does not build on Windows", file=sys.stderr)
        return 1
    from itwinai.cli.install.cache import cached_wheel
    from itwinai.cli.install.horovod import install, print_dry_run
    from itwinai.cli.install.plan import make_plan
    from itwinai.cli.signals import stop_on_signals

    try:
        with stop_on_signals():
            plan = make_plan(args.version, args.cache_dir)
            if args.dry_run:
                return print_dry_run(plan, force=args.force)
            if args.cached_only and cached_wheel(plan) is None:
                print(f"Horovod is not installed: there is no wheel for torch {plan.torch.version} in {plan.folder}.")
                return 0
            install(plan, force=args.force, wheel_only=args.wheel_only, verbose=args.verbose)
    except (InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-built was kept", file=sys.stderr)
        return 130
    return 0
