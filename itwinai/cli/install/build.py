"""Build Horovod against the installed torch, and keep the wheel."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from itwinai.cli.install.build_errors import build_error
from itwinai.cli.install.cache import cached_wheel, one_at_a_time, store_wheel
from itwinai.cli.install.environment import build_environment
from itwinai.cli.install.plan import Plan
from itwinai.cli.install.prerequisites import ensure_prerequisites
from itwinai.cli.install.process import run_logged
from itwinai.cli.install.progress import BuildProgress
from itwinai.cli.install.verify import Loaded, verify_wheel
from itwinai.cli.terminal import is_live


def build_wheel(plan: Plan, force: bool = False, verbose: bool = False) -> tuple[Path, Loaded, float]:
    """Build the wheel and put it into the cache, whole or not at all.

    Args:
        plan: what to build.
        force: build even if another process has just cached a wheel.
        verbose: show the whole output in place of the progress.

    Returns:
        The wheel in the cache, what it loads as, and the seconds its build took (0 if cached).

    Raises:
        InstallError: something is missing, the build failed, or its result does not load.
    """
    ensure_prerequisites(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(plan):
        ready = None if force else cached_wheel(plan)
        if ready:
            return ready, verify_wheel(ready), 0.0
        print(f"Building Horovod {plan.version} for torch {plan.torch.version}; this takes some minutes.")
        if plan.note:
            print(f"  {plan.note}")
        print(f"  log: {plan.log}", flush=True)
        with tempfile.TemporaryDirectory(prefix="itwinai-horovod-", ignore_cleanup_errors=True) as scratch:
            built, seconds = _compile(plan, Path(scratch), verbose)
            loaded = verify_wheel(built)
            return store_wheel(built, plan), loaded, seconds


def _compile(plan: Plan, scratch: Path, verbose: bool) -> tuple[Path, float]:
    """Run the build in a temporary folder; return the wheel there and the seconds it took."""
    progress = BuildProgress(sys.stdout, live=is_live(sys.stdout) and not verbose)

    def on_line(line: str) -> None:
        if verbose:
            print(line, flush=True)
        else:
            progress.feed(line)

    env, command = build_environment(plan, scratch), build_command(plan, scratch / "wheel")
    try:
        code = run_logged(command, env, scratch, plan.log, on_line, progress.tick)
    finally:
        seconds = progress.finish()
    built = next(iter((scratch / "wheel").glob("horovod-*.whl")), None)
    if code or built is None:
        raise build_error(plan, code)
    return built, seconds


def build_command(plan: Plan, target: Path) -> list[str]:
    """Return the pip command that builds the wheel into a folder."""
    # pip's own cache is left out both ways: its wheels are named without the torch they were built against
    return [
        *(sys.executable, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--progress-bar", "off"),
        *("--no-cache-dir", "--no-binary", "horovod", "--no-deps", "--no-build-isolation"),
        *(f"horovod=={plan.version}", "--wheel-dir", str(target)),
    ]
