"""Build Horovod against the installed torch, and keep the wheel."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from itwinai.cli.install.cache import cached_wheel, one_at_a_time, store_wheel
from itwinai.cli.install.environment import build_environment
from itwinai.cli.install.plan import Plan
from itwinai.cli.install.prerequisites import ensure_prerequisites
from itwinai.cli.install.progress import BuildProgress
from itwinai.cli.install.verify import Loaded, verify_wheel
from itwinai.cli.terminal import is_live
from itwinai.errors import InstallError
from itwinai.launchers.child_process import ChildProcess

_COMPILER_ERROR = re.compile(r"\berror: (?!subprocess-exited)|CMake Error|undefined reference to|cannot find -l")
_BUILD_FOLDER = re.compile(r"/\S+/horovod_[0-9a-f]{32}/")
_PIP_ERROR = re.compile(r"^\s*(ERROR: |\w+(Error|Exception): |error: )")


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


def run_logged(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> int:
    """Run a command and return its exit code; when interrupted, end it with all it started.

    Args:
        command: the command.
        env: its environment.
        cwd: its working directory.
        log: the file that gets all its output.
        on_line: called with each line of output.
        on_tick: called several times a second.
    """

    def tick() -> None:
        for line in child.new_lines():
            on_line(line)
        on_tick()

    with ChildProcess(command, log, env=env, cwd=cwd, heading=f"$ {shlex.join(command)}\n") as child:
        child.wait(tick=tick)
        tick()
        return child.code or 0


def build_error(plan: Plan, code: int) -> InstallError:
    """Return the error for a failed build, with what its log says went wrong."""
    text = plan.log.read_text(errors="replace")
    shown = textwrap.indent(textwrap.dedent("\n".join(first_errors(text))).strip("\n"), "  ")
    hint = ""
    if "Killed signal" in text:
        hint = "\n  The compiler was killed, most likely for memory: set MAKEFLAGS=-j1 and try again."
    elif "(from versions: none)" in text:
        hint = "\n  Without network: put Horovod's source archive into a folder and set PIP_FIND_LINKS to it."
    what = f"Building Horovod {plan.version} failed (exit code {code})"
    return InstallError(f"{what}:\n{shown}{hint}\n  The whole log: {plan.log}")


def first_errors(text: str, before: int = 2, after: int = 5, limit: int = 2) -> list[str]:
    """Pick the lines of a build log that say what went wrong.

    Args:
        text: the whole log.
        before: lines of context before an error.
        after: lines of context after an error.
        limit: how many errors to show.

    Returns:
        The first compiler or CMake errors with context; else pip's errors; else the end of the log.
    """
    # the temporary folder says nothing, nor does make's line that calls the compiler
    lines = [_BUILD_FOLDER.sub("", line) for line in text.splitlines() if not line.lstrip().startswith("cd /")]
    for pattern, lead in ((_COMPILER_ERROR, before), (_PIP_ERROR, 0)):
        hits = [number for number, line in enumerate(lines) if pattern.search(line)]
        if not hits:
            continue
        keep: list[int] = []
        shown = 0
        for hit in hits:
            if keep and hit <= keep[-1]:
                continue
            if shown == limit:
                break
            start = max(hit - lead, keep[-1] + 1 if keep else 0)
            keep += range(start, min(hit + after + 1, len(lines)))
            shown += 1
        return [lines[number][:200] for number in keep]
    return [line[:200] for line in lines[-15:]]
