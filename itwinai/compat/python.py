"""Private names of Python's standard library: warnings, exit functions, the garbage collector."""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing.util
import sys
import threading
import warnings
import weakref
from typing import Any


def forget_warned() -> None:
    """Let Python look at changed warning filters again also where it has warned before."""
    warnings._filters_mutated()  # type: ignore[attr-defined]


def print_recorded_warnings() -> None:
    """Let warnings be printed that `warnings.catch_warnings(record=True)` keeps in a list, which only it looks at."""
    if getattr(warnings._showwarnmsg_impl, "__name__", "") == "append":  # type: ignore[attr-defined]
        warnings._showwarnmsg_impl = _print_warning  # type: ignore[attr-defined]


def _print_warning(message: Any) -> None:
    sys.stderr.write(warnings._formatwarnmsg(message))  # type: ignore[attr-defined]


def objects_of(*kinds: type) -> list[Any]:
    """Return the objects of this process that are of some classes, as its garbage collector knows them.

    By their type: an object that stands for another one would be asked what it is.
    """
    objects = gc.get_objects()
    wanted = {cls for cls in set(map(type, objects)) if issubclass(cls, kinds)}
    return [value for value in objects if type(value) in wanted]


def forget_exit_functions() -> None:
    """Leave what was registered with `atexit`, or to be finalized at the end, to the process that was forked.

    What the libraries of Python itself do at the end is done in this process too.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]


def run_threads_exit_functions() -> None:
    """Tell threads that the process ends, as Python does before it waits for them: those of executors sleep else."""
    for function in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        function()


def run_exit_functions() -> None:
    """Run what has been registered with `atexit`, as Python does when it ends."""
    atexit._run_exitfuncs()
