"""Read collapsed stacks: one line for each stack, its frames from the outermost inwards, and how often it was seen.

A line is ``frame;frame;frame count``, and a frame ``function (file:line)``, as py-spy and other samplers write them.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

_FRAME = re.compile(r"(?P<name>.+?) \((?P<file>[/<].*?|[A-Za-z]:.*?|[^()]*?)(:(?P<line>\d+))?\)")
_THREAD = re.compile(r"thread \(\S+\)")
_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = re.compile(r"python\d+\.\d+t?")  # the folder of the standard library


class Frame(NamedTuple):
    """One call of a stack; the line is that in which the function begins, unless lines were recorded."""

    name: str
    file: str
    line: int

    @property
    def place(self) -> str:
        """File and line, without the folder in which a package is installed."""
        short = "/".join(self._within or PurePath(self.file).parts[-2:]).replace("//", "/")
        return f"{short}:{self.line}" if self.line else short

    @property
    def package(self) -> str:
        """The installed package, or the module of the standard library; empty for code that is not installed."""
        return self._within[0] if self._within else self.file if self.file.startswith("<") else ""

    @property
    def _within(self) -> tuple[str, ...]:
        parts = PurePath(self.file).parts
        at = [i for i, part in enumerate(parts) if part in _INSTALLED or _STANDARD.fullmatch(part)]
        return parts[at[-1] + 1 :] if at else ()


@dataclass(frozen=True)
class Function:
    """How often a function was seen.

    Attributes:
        name: of the function.
        place: file and line.
        self_share: share of all samples in which it ran itself.
        total_share: share of all samples in which it, or what it has called, ran. A function that calls itself counts
            once.
    """

    name: str
    place: str
    self_share: float
    total_share: float


def read_stacks(collapsed: str) -> Iterator[tuple[list[Frame], int]]:
    """Yield each stack, outermost frame first, without the name of its thread, and its number of samples."""
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_frame(text) for text in stack.split(";") if not _THREAD.match(text)]
        if frames:
            yield frames, int(count)


def top_functions(collapsed: str, limit: int = 20) -> list[Function]:
    """Return the functions in which most samples were taken.

    Args:
        collapsed: the stacks.
        limit: number of functions at most.

    Returns:
        The functions, those first that ran themselves most often.
    """
    return _shares(collapsed, limit, lambda frames: frames)


def lowest_functions(collapsed: str, within: str | Path, limit: int = 20) -> list[Function]:
    """Return the functions of a package or a folder with their time, including that of functions they call.

    Each sample is counted for the innermost frame that lies within: with the folder of a user's code, the time that
    passes in torch belongs to the user's function that has called it.

    Args:
        collapsed: the stacks, recorded with the whole names of files.
        within: name of a package, as ``torch``; or a folder, given as a path: with a separator, or as a `Path`.
            Packages that are installed inside of the folder do not belong to it.
        limit: number of functions at most.

    Returns:
        The functions, those first to which most samples belong: that is their `Function.total_share`. The shares are of
        all samples, and what is missing up to 1 passed outside.
    """
    belongs = _folder_test(Path(within)) if isinstance(within, Path) or os.sep in within else _package_test(within)

    def lowest(frames: list[Frame]) -> list[Frame]:
        inside = [frame for frame in frames if belongs(frame.file)]
        return inside[-1:]

    found = _shares(collapsed, None, lowest)
    return sorted(found, key=lambda function: function.total_share, reverse=True)[:limit]


def _shares(collapsed: str, limit: int | None, counted: Callable[[list[Frame]], list[Frame]]) -> list[Function]:
    own: dict[Frame, int] = defaultdict(int)
    total: dict[Frame, int] = defaultdict(int)
    samples = 0
    for frames, count in read_stacks(collapsed):
        samples += count
        for frame in set(counted(frames)):
            total[frame] += count
            if frame == frames[-1]:
                own[frame] += count
    functions = [
        Function(frame.name, frame.place, own[frame] / samples, count / samples) for frame, count in total.items()
    ]
    functions.sort(key=lambda function: (function.self_share, function.total_share), reverse=True)
    return functions[:limit]


def _frame(text: str) -> Frame:
    match = _FRAME.fullmatch(text)
    if match is None:
        return Frame(text, "", 0)
    return Frame(match["name"], match["file"], int(match["line"] or 0))


def _folder_test(folder: Path) -> Callable[[str], bool]:
    absolute = folder.absolute()

    def belongs(file: str) -> bool:
        path = PurePath(file)
        return path.is_relative_to(absolute) and not set(_INSTALLED) & set(path.relative_to(absolute).parts)

    return belongs


def _package_test(package: str) -> Callable[[str], bool]:
    def belongs(file: str) -> bool:
        parts = PurePath(file).with_suffix("").parts if file else ()
        installed = [i for i, part in enumerate(parts) if part in _INSTALLED]
        # A package that is not installed, but stands in a folder of its own, is known by the name of that folder.
        return parts[installed[-1] + 1] == package if installed else package in parts[1:]

    return belongs
