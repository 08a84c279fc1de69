"""All checks, those that are worth most first."""

from __future__ import annotations

from tests.gpu import checkpoints, deepspeed, horovod, launching, numbers, speed, tuning, watching
from tests.gpu.check import Check


def all_checks() -> list[Check]:
    """Return the checks in the order in which they run."""
    groups = (numbers, launching, deepspeed, checkpoints, watching, speed, horovod, tuning)
    return sorted((check for group in groups for check in group.CHECKS), key=lambda check: check.value)
