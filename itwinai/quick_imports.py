"""Import torch, Lightning and torchmetrics without what their import does beside.

Python's garbage collector looks again and again at a million new objects that all stay. And torchmetrics imports
`scipy.signal`, wherever SciPy is installed, to give it back a name, ``hamming``, that it once had: with it come most of
SciPy's packages. Its code runs when somebody uses it instead.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_SIGNAL = "scipy.signal"
_PENDING = "__itwinai_pending__"


@contextmanager
def importing_quickly() -> Iterator[None]:
    """Import without garbage collections, and SciPy's part for torchmetrics only when it is used.

    Outside the context nothing is different: the collector goes on, and looks at what was imported only in full
    collections; the module `scipy.signal` is the real one, whose code may still have to run.
    """
    collects, finder, known = gc.isenabled(), _SignalFinder(), len(sys.modules)
    gc.disable()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if collects:
            # What was frozen stays so; to count it takes long in a worker, where it is all that was ever imported.
            if len(sys.modules) > known and gc.get_freeze_count() == 0:
                gc.freeze()
                gc.unfreeze()  # all goes to the oldest generation, where objects are that stay
            gc.enable()


class _SignalFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == _SIGNAL else None
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Deferring(spec.loader)
        return spec


class _Deferring(Loader):
    """Makes a module whose code runs later.

    Args:
        loader: runs it.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Store what runs the code."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        # Without its path, Python asks for it to import what is in the package: then its own code has to run first.
        vars(module)[_PENDING] = _Pending(self.loader, vars(module).pop("__path__"))
        vars(module)["hamming"] = _hamming


class _DeferredModule(ModuleType):
    """A module whose code runs when it is asked for something that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        pending: _Pending | None = vars(self).get(_PENDING)
        if pending is None or not pending.run(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        if (pending := vars(self).get(_PENDING)) is not None:
            pending.run(self)
        return sorted(vars(self))


class _Pending:
    """The code of a module that has not run.

    Args:
        loader: runs it.
        path: where the package is.
    """

    def __init__(self, loader: Loader, path: list[str]) -> None:
        self.loader = loader
        self.path = path
        self._lock = threading.RLock()
        self._runs = False

    def run(self, module: ModuleType) -> bool:
        """Run it, or wait until another thread has; return False in the code itself, which runs already."""
        with self._lock:
            if self._runs:
                return False
            if _PENDING not in vars(module):
                return True
            self._runs = True
            try:
                module.__path__ = self.path
                self.loader.exec_module(module)
            except BaseException:
                del module.__path__
                raise
            finally:
                self._runs = False
            if vars(module)["hamming"] is _hamming:
                vars(module)["hamming"] = module.windows.hamming
            del vars(module)[_PENDING]
            module.__class__ = ModuleType
            return True


def _hamming(*args: Any, **kwargs: Any) -> Any:
    """Return what `scipy.signal.windows.hamming` does, under the name that torchmetrics gives to it."""
    from scipy.signal.windows import hamming

    return hamming(*args, **kwargs)
