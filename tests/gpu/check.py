"""A check, and the bench it works at: where it leaves figures, and says what they should be."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")
FIGURES = "figures.jsonl"


class NotInstalled(Exception):
    """What a check needs is not there."""


@dataclass(frozen=True)
class Check:
    """Something that is to be found out.

    Attributes:
        name: for ``--only``.
        group: the file that it is in.
        title: what it looks at, for tables.
        run: does it.
        value: the order in which checks run: the lowest, which are worth most, first.
        seconds: its time limit.
        needs: packages that may be missing.
    """

    name: str
    group: str
    title: str
    run: Callable[[Bench], None]
    value: int
    seconds: float = 40.0
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Return the packages that are missing here."""
        importlib.invalidate_caches()  # an earlier check may have installed them
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Figure:
    """Something that was measured.

    Attributes:
        name: what it is.
        value: how much, or a text.
        unit: of the value.
        wanted: what it should be, in words; empty for one that is only recorded.
        ok: whether it is.
    """

    name: str
    value: float | str
    unit: str = ""
    wanted: str = ""
    ok: bool = True


class Bench:
    """Where a check works.

    Args:
        folder: of the check, for what it writes.
        dry: work on the CPU, with tiny sizes.

    Attributes:
        accelerator: for trainers.
        device: the device that they use.
    """

    def __init__(self, folder: Path, dry: bool) -> None:
        self.folder = folder
        self.dry = dry
        self.accelerator = "cpu" if dry else "gpu"
        self.device = torch.device("cpu") if dry else torch.device("cuda", 0)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return not self.dry

    def size(self, real: Value, dry: Value) -> Value:
        """Return a size that suits the machine."""
        return dry if self.dry else real

    def synchronize(self) -> None:
        """Wait until the device has done all it was told."""
        if self.cuda:
            torch.cuda.synchronize()

    def record(self, name: str, value: float | str, unit: str = "") -> None:
        """Leave a figure that has no right or wrong."""
        self._leave(Figure(name, value, unit))

    def expect(
        self,
        name: str,
        value: float | str,
        *,
        equal: float | str | None = None,
        within: float = 0.0,
        at_most: float | None = None,
        at_least: float | None = None,
        contains: str | None = None,
        unit: str = "",
    ) -> None:
        """Leave a figure, and say what it should be.

        Args:
            name: what it is.
            value: how much.
            equal: it should be this,
            within: up to this difference.
            at_most: it should not be more.
            at_least: it should not be less.
            contains: a text should contain this.
            unit: of the value.
        """
        wanted, ok = [], True
        if equal is not None:
            wanted.append(f"{_text(equal)}{f' ± {within:.3g}' if within else ''}")
            same = value == equal if isinstance(value, str) or isinstance(equal, str) else abs(value - equal) <= within
            ok = ok and same
        if at_most is not None:
            wanted.append(f"at most {_text(at_most)}")
            ok = ok and float(value) <= at_most
        if at_least is not None:
            wanted.append(f"at least {_text(at_least)}")
            ok = ok and float(value) >= at_least
        if contains is not None:
            wanted.append(f"contains {contains!r}")
            ok = ok and contains in str(value)
        if isinstance(value, float) and math.isnan(value):
            ok = False
        self._leave(Figure(name, value, unit, ", ".join(wanted), ok))

    def in_child(self, work: Callable[[], Any], **variables: str) -> Any:
        """Do something in a process of its own, which a check without a CUDA context can fork; return what it returns.

        Raises:
            RuntimeError: it has failed.
        """
        return self.wait_for(self.start_child(work, **variables))

    def start_child(self, work: Callable[[], Any], **variables: str) -> tuple[int, Path]:
        """Start something in a process of its own, for `wait_for`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"child-{len(list(self.folder.glob('child-*')))}"
        path.touch()
        _flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ.update(variables)
                path.write_bytes(pickle.dumps(work()))
                code = 0
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                _flush()
                os._exit(code)
        return pid, path

    def wait_for(self, child: tuple[int, Path]) -> Any:
        """Wait until a process of `start_child` has ended, and return what it returned."""
        pid, path = child
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise RuntimeError(f"a process of the check ended with exit code {code}; its output is in the log")
        return pickle.loads(path.read_bytes())

    def _leave(self, figure: Figure) -> None:
        with (self.folder / FIGURES).open("a") as file:
            file.write(json.dumps(asdict(figure)) + "\n")


def figures_in(folder: Path) -> list[Figure]:
    """Return the figures that a check has left, also if it was cut short."""
    path = folder / FIGURES
    if not path.exists():
        return []
    return [Figure(**json.loads(line)) for line in path.read_text().splitlines() if line.endswith("}")]


def is_alive(pid: int) -> bool:
    """Tell whether a process is there, and not only its exit code."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill_group(pid: int) -> None:
    """Kill a process and all of its group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def furthest(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Return the largest difference of two lists of tensors, relative to the largest value."""
    difference = max(float((a.double() - b.double()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return difference / max(float(b.double().abs().max()) for b in theirs)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
