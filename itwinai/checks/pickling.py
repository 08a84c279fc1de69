"""Check that module, data and callbacks can be sent to processes that are no copies of the caller, such as Ray's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

from itwinai.checks.processes import RunFailedError
from itwinai.checks.session import Session
from itwinai.checks.source_lines import attribute_line, class_line
from itwinai.checks.verdict import CheckFailedError
from itwinai.compat.lightning_trainer import module_internals
from itwinai.launchers.payload import dumps

_MEND = (
    "Make it in setup() or when it is first used, so that each worker has its own, or leave it out in __getstate__. "
    "Workers that are copies of your process do not need it: launcher='fork'."
)


def check(session: Session) -> str:
    """Pickle and unpickle all that travels.

    Raises:
        CheckFailedError: something cannot be pickled, or not be made again from its pickle.
    """
    try:
        found = session.once("pickling", "pickling", lambda: _pickle(session))
    except RunFailedError as error:
        raise CheckFailedError(f"module or data cannot be made to be pickled: {error.summary}", at=error.at) from None
    if isinstance(found, CheckFailedError):
        raise found
    return f"{found / 2**20:.1f} MiB, pickled and unpickled"


def _pickle(session: Session) -> int | CheckFailedError:
    built = session.subject.build()
    parts: dict[str, Any] = {f"the module {type(built.module).__name__}": built.module}
    if built.datamodule is not None:
        parts[f"the datamodule {type(built.datamodule).__name__}"] = built.datamodule
    elif built.data is not None:
        parts["the data loaders"] = built.data
    parts |= {f"the callback {type(one).__name__}": one for one in built.callbacks}
    size = 0
    for name, part in parts.items():
        try:
            packed = dumps(part)
        except Exception as error:  # the user's own __reduce__ and __getstate__ run here: anything can come
            path, value = next(_culprits(part), ("", part))
            at = attribute_line(part, path) if path else class_line(type(part))
            where = (
                f"{name} cannot be pickled: its attribute {path} is a {_kind(value)}"
                if path
                else (f"{name} cannot be pickled: {error}")
            )
            return _Failed(where, _MEND, at)
        try:
            pickle.loads(packed)
        except Exception as error:  # likewise, of __setstate__ and __new__
            return _Failed(
                f"{name} pickles, and cannot be made again from its pickle: {type(error).__name__}: {error}",
                "A class whose __new__ or __init__ takes arguments needs __reduce__ or __getnewargs__.",
                class_line(type(part)),
            )
        size += len(packed)
    return size


class _Failed(CheckFailedError):
    """One that pickles itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cause, self.mend, self.at)


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.lstrip('_')}.{kind.__name__}"


def _culprits(owner: Any, prefix: str = "", depth: int = 6) -> Iterator[tuple[str, Any]]:
    """Yield the attributes below an object that cannot be pickled, the deepest first, with their paths."""
    internals = module_internals() - {"_modules"}
    parts = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    modules = parts.pop("_modules", None) or {}
    for name, value in {**parts, **modules}.items():
        if name in internals or depth == 0:
            continue
        try:
            dumps(value)
        except Exception:  # whatever it is, it is the answer
            path = f"{prefix}{name}"
            yield from _culprits(value, f"{path}.", depth - 1)
            yield path, value
