"""Tracebacks without the frames of frameworks: they start and end in the user's code."""

from __future__ import annotations

import functools
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from itwinai.errors import ItwinaiError

VARIABLE = "ITWINAI_FULL_TRACEBACK"
"""The environment variable that keeps all frames."""

_FRAMEWORKS = frozenset(
    (
        "abc",
        "builtins",
        "concurrent",
        "contextlib",
        "deepspeed",
        "functools",
        "horovod",
        "importlib",
        "itwinai",
        "jsonargparse",
        "lightning",
        "lightning_fabric",
        "multiprocessing",
        "pytorch_lightning",
        "ray",
        "runpy",
        "threading",
        "torch",
        "torchmetrics",
        "tqdm",
    )
)

_OWN_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")

P = ParamSpec("P")
R = TypeVar("R")


class Frame(NamedTuple):
    """A line of a traceback, in a form that can be sent to another process."""

    file: str
    function: str
    first_line: int
    line: int
    module: str


def hides_framework_frames(entry_point: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function that users call so that the tracebacks of what it raises are short.

    The frames of ``entry_point`` and of what it calls in frameworks are left out: Python prints the line of the user
    that calls it, and then the user's code in which the exception was raised.
    """

    @functools.wraps(entry_point)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return entry_point(*args, **kwargs)
        except Exception as error:
            hide_framework_frames(error)
            raise

    return wrapper


def hide_framework_frames(error: BaseException) -> None:
    """Remove the frames of frameworks from an exception's traceback, and from those of the exceptions behind it.

    Below the last line of the user, libraries are left out too; the innermost frame stays where a framework that runs
    the user's code has failed, unless it only raises. The exceptions of itwinai say by themselves what is wrong. A note
    says how many frames are hidden.
    """
    if shows_all_frames():
        return
    hidden = sum(_hide(one) for one in chain(error))
    notes = getattr(error, "__notes__", [])
    if hidden and not isinstance(error, ItwinaiError) and not any(VARIABLE in note for note in notes):
        note = f"[{hidden} frames of libraries are hidden; {VARIABLE}=1 shows them]"
        # What helps comes first, on one line with it. Python 3.10 neither has add_note nor prints notes.
        helpful = [one for one in notes[:1] if not one.startswith("[")]
        vars(error)["__notes__"] = [" ".join([*helpful, note]), *notes[len(helpful) :]]


def add_note(error: BaseException, note: str) -> None:
    """Add a line below an exception's message; Python 3.10 neither has this method nor prints notes."""
    vars(error).setdefault("__notes__", []).append(note)


def shows_all_frames() -> bool:
    """Return whether the user has asked for all frames."""
    return os.environ.get(VARIABLE, "0") != "0"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that Python prints above it, each once."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def frames_of(traceback: TracebackType | None) -> list[Frame]:
    """Return the lines of a traceback, the outermost first."""
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        frames.append(Frame(code.co_filename, code.co_name, code.co_firstlineno, traceback.tb_lineno, module))
        traceback = traceback.tb_next
    return frames


def traceback_of(frames: list[Frame]) -> TracebackType | None:
    """Return a traceback with the lines of another process: Python prints it like one of its own."""
    following: TracebackType | None = None
    for frame in reversed(frames):
        try:
            FunctionType(_code(frame), {"__name__": frame.module, "__file__": frame.file})()
        except ZeroDivisionError as raised:
            assert raised.__traceback__ is not None and raised.__traceback__.tb_next is not None
            here = raised.__traceback__.tb_next
            following = TracebackType(following, here.tb_frame, here.tb_lasti, frame.line)
    return following


def _raise() -> None:
    1 / 0  # noqa: B018


def _code(frame: Frame) -> CodeType:
    """Return the code of a function that only raises, under the name and in the file of a frame."""
    named: dict[str, Any] = {
        "co_filename": frame.file,
        "co_name": frame.function,
        "co_firstlineno": frame.first_line,
    }
    if sys.version_info >= (3, 11):
        named |= {"co_qualname": frame.function, "co_linetable": _line_table(frame.line - frame.first_line)}
    return _raise.__code__.replace(**named)


def _line_table(distance: int) -> bytes:
    """Return the line table of code that is all on one line, in no column: Python would underline those of `_raise`.

    The format is described in CPython's ``Objects/locations.md``: each entry is a byte with its kind (13, a line
    without columns) and the number of instructions less one, and the distance to the line before as a signed varint.

    Args:
        distance: from the first line of the function.
    """
    kind = 0x80 | 13 << 3 | 7
    number = distance << 1 if distance >= 0 else (-distance << 1) | 1
    varint = []
    while number >= 64:
        varint.append(number & 63 | 64)
        number >>= 6
    return bytes([kind, *varint, number]) + bytes([kind, 0]) * 16


def _hide(error: BaseException) -> int:
    """Remove the frames of frameworks from one traceback; return how many there were."""
    entries = []
    traceback = error.__traceback__
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    kept, below = _users_part(entries)
    if (
        entries
        and entries[-1] not in kept
        and not isinstance(error, ItwinaiError)
        and not (kept and (_only_raises(entries[-1]) or not any(map(_is_of_trainer, below))))
    ):
        kept.append(entries[-1])
    for entry, following in zip(kept, [*kept[1:], None], strict=False):
        entry.tb_next = following
    error.__traceback__ = kept[0] if kept else None
    return len(entries) - len(kept)


def _users_part(entries: list[TracebackType]) -> tuple[list[TracebackType], list[TracebackType]]:
    """Return the frames of the user's code and of what leads to it, and those below its last frame.

    The user's are files outside of installed packages, and what frameworks call in installed ones: a module may be
    installed. Below them, libraries say in their frames nothing that helps.
    """
    kept: list[TracebackType] = []
    last, packages, called = -1, set[str](), False
    for number, entry in enumerate(entries):
        if is_of_framework(entry):
            called = True
            continue
        package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if called or package in packages or not is_library(entry.tb_frame.f_code.co_filename):
            packages.add(package)
            last = number
        kept.append(entry)
        called = False
    below = entries[last + 1 :] if last >= 0 else []
    return [entry for entry in kept if entry not in below], below


def is_library(file: str) -> bool:
    """Return whether a file is of an installed package, of the standard library, or of itwinai."""
    parts = Path(file).parts
    inside = "site-packages" in parts or "dist-packages" in parts
    return inside or file.startswith((str(Path(os.__file__).parent), _OWN_FOLDER, "<frozen "))


def _is_of_trainer(entry: TracebackType) -> bool:
    """Return whether a frame is of a framework that runs the user's code, and may fail by itself."""
    package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return is_of_framework(entry) and package != "torch"


def _only_raises(entry: TracebackType) -> bool:
    """Return whether the line of a frame is a `raise`, which says nothing that the exception does not say."""
    return linecache.getline(entry.tb_frame.f_code.co_filename, entry.tb_lineno).lstrip().startswith("raise ")


def is_of_framework(entry: TracebackType) -> bool:
    """Return whether the outermost frame of a traceback is in a framework."""
    frame = entry.tb_frame
    if frame.f_code.co_filename.startswith(_OWN_FOLDER):  # also as __main__, under `python -m itwinai.cli.main`
        return True
    return is_framework(str(frame.f_globals.get("__name__", "")))


def is_framework(module: str) -> bool:
    """Return whether a module belongs to a framework that calls the user's code, unlike a library that it calls.

    Args:
        module: its full name; empty for code that a framework has made, which is in no module.
    """
    return not module or module.partition(".")[0] in _FRAMEWORKS


def is_users(file: str) -> bool:
    """Return whether a file is the user's own: of no installed package, not of the standard library, not of itwinai.

    Args:
        file: its path, as a frame has it.
    """
    path = Path(file)
    not_own = (str(Path(__file__).parent), str(Path(os.__file__).parent), f"{sys.prefix}/lib")
    return path.exists() and "site-packages" not in path.parts and not str(path).startswith(not_own)
