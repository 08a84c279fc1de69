"""What the log of a job says of its failure."""

from __future__ import annotations

import re
from pathlib import Path

_END = re.compile(r"^itwinai: job \S+ was ended by .*$", re.MULTILINE)
"""The line with which a try ends that did not succeed; the next one writes below it."""

_SLURMS = re.compile(r"(?:srun|slurmstepd[\w-]*): error: .*")
_ERRORS = (
    re.compile(r"(?:itwinai: )?(?:\[rank \d+\] )?error: .*"),  # of a command, of the check of the nodes
    re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b(?:: .*)?"),
)


def reason_of_failure(log: Path) -> str:
    """Return the error for which a job has failed, in a line; nothing if its log says nothing.

    Of several errors the first counts: workers that lose another one fail after it. Without one it is what SLURM says,
    or the last line.

    Args:
        log: the file that it has printed to.
    """
    if not log.exists():
        return ""
    tries = _END.split(log.read_text(encoding="utf-8", errors="replace"))
    for text in reversed(tries[-2:]):  # the last one, and what is below it
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if any(pattern.fullmatch(line) for pattern in _ERRORS)]
        said = [line for line in lines if _SLURMS.fullmatch(line)]
        found = errors[:1] or [line for line in said if "***" in line or "oom" in line.lower()] or said
        if found:
            return found[0].removeprefix("itwinai: ").removeprefix("error: ")
    return next((line.strip() for text in reversed(tries) for line in reversed(text.splitlines()) if line.strip()), "")
