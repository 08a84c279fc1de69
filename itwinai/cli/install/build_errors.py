"""Why a build failed, as read from its log."""

from __future__ import annotations

import re
import textwrap

from itwinai.cli.install.plan import Plan
from itwinai.errors import InstallError

_COMPILER_ERROR = re.compile(r"\berror: (?!subprocess-exited)|CMake Error|undefined reference to|cannot find -l")
_BUILD_FOLDER = re.compile(r"/\S+/horovod_[0-9a-f]{32}/")
_PIP_ERROR = re.compile(r"^\s*(ERROR: |\w+(Error|Exception): |error: )")


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
