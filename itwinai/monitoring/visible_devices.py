"""Which GPUs a process may use, as its environment says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CUDA, ROCR, HIP, ORDER = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"

Environment = Mapping[str, str]


def gpu_environment() -> dict[str, str]:
    """Return the environment variables about GPUs that are set."""
    return {name: os.environ[name] for name in (CUDA, ROCR, HIP, ORDER) if name in os.environ}


@dataclass(frozen=True)
class Visible:
    """The GPUs that some processes may use.

    Attributes:
        ids: their unique ids, in the order in which the first process numbers them, then those of the others.
        missing: reason by what the environments name and cannot be found.
        by_number: whether GPUs are named by their numbers.
    """

    ids: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    by_number: bool = False


def visible_to_cuda(environments: Iterable[Environment], ids: Sequence[str]) -> Visible:
    """Return the NVIDIA GPUs that processes with these environments may use.

    Args:
        environments: of the processes.
        ids: of all GPUs of the node, in the order of their numbers.
    """
    return _joined(_selected(environment.get(CUDA), ids, CUDA) for environment in environments)


def visible_to_hip(environments: Iterable[Environment], ids: Sequence[str]) -> Visible:
    """Return the AMD GPUs that processes with these environments may use.

    HIP sees, by new numbers, what ROCR leaves; without HIP's own variable it follows CUDA's.

    Args:
        environments: of the processes.
        ids: of all GPUs of the node, in the order of their numbers.
    """
    found = []
    for environment in environments:
        below = _selected(environment.get(ROCR), ids, ROCR)
        name = HIP if HIP in environment else CUDA
        above = _selected(environment.get(name), below.ids, name)
        found.append(Visible(above.ids, below.missing | above.missing, below.by_number or above.by_number))
    return _joined(found)


def _joined(several: Iterable[Visible]) -> Visible:
    ids: dict[str, None] = {}
    missing: dict[str, str] = {}
    by_number = False
    for one in several:
        ids |= dict.fromkeys(one.ids)
        missing |= one.missing
        by_number = by_number or one.by_number
    return Visible(list(ids), missing, by_number)


def _selected(text: str | None, ids: Sequence[str], variable: str) -> Visible:
    """Return what one variable selects: like CUDA, what comes before the first entry that is not valid."""
    if text is None:
        return Visible(list(ids))
    by_number = {str(number): unique for number, unique in enumerate(ids)}
    found: list[str] = []
    numbered = False
    for entry in (part.strip() for part in text.split(",") if text.strip()):
        if entry.startswith("MIG-"):  # an instance, which is not in the list of GPUs
            found.append(entry)
        elif entry in by_number:
            found.append(by_number[entry])
            numbered = True
        elif entry.startswith("GPU-") and len(begun := [unique for unique in ids if unique.startswith(entry)]) == 1:
            found += begun
        elif entry.startswith("-"):  # -1, the usual way to hide the rest
            break
        else:
            reason = f"{variable}={text} names it, and there is no such GPU here; the entries after it do not count"
            return Visible(found, {f"GPU {entry!r}": reason}, numbered)
    return Visible(found, by_number=numbered)
