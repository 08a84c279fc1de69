"""What a script has set in modules of the user (``mylib.SCALE = 3``), which a new process that imports them has not."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from itwinai.tracebacks import is_users

ModuleValues = Mapping[str, Mapping[str, Any]]

_PLAIN = (bool, int, float, str, type(None))


def changed_values() -> ModuleValues:
    """Return the constants of the user's modules that have other values than their files say, by module and name.

    Looked at are names to which a module assigns a number, a text, or a tuple of these, once and for all. What is
    computed, or is filled while modules are imported, is not: a process that imports the modules has it by itself.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(file, str) or not file.endswith(".py") or not is_users(file):
            continue
        with suppress(OSError, SyntaxError, ValueError):  # a file that was removed, or changed to something else
            written = _constants(file, Path(file).stat().st_mtime_ns)
            now = vars(module)
            changed = {one: now[one] for one, value in written.items() if one in now and _differ(now[one], value)}
            if changed:
                found[name] = changed
    return found


def apply(values: ModuleValues) -> None:
    """Set constants of modules; those of modules that cannot be imported here are not used here."""
    for name, changed in values.items():
        with suppress(ImportError):
            vars(importlib.import_module(name)).update(changed)


@cache
def _constants(file: str, changed_at: int) -> dict[str, Any]:
    """Return the constants of a file, by name."""
    tree = ast.parse(Path(file).read_bytes())
    stored = [one.id for one in _at_top(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
    found: dict[str, Any] = {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        target = statement.target if isinstance(statement, ast.AnnAssign) else target
        value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(target, ast.Name) and value is not None and stored.count(target.id) == 1:
            with suppress(ValueError):  # it is computed
                if _is_plain(literal := ast.literal_eval(value)):
                    found[target.id] = literal
    return found


def _at_top(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is within a module, but for functions and classes, whose names are their own."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _at_top(child)


def _differ(now: Any, written: Any) -> bool:
    return _is_plain(now) and (type(now) is not type(written) or repr(now) != repr(written))


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))
