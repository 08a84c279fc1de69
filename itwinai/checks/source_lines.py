"""Where in the user's files something is: an attribute's assignment, a method, the line that calls."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from itwinai.tracebacks import is_framework, is_users


def place(file: str, line: int) -> str:
    """Return how a place is called: relative to the current folder where the file is below it."""
    path = Path(file)
    with_folder = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return f"{with_folder}:{line}"


def shown(file: str) -> bool:
    """Return whether a file is one that the user may have written."""
    return is_users(file)


def calling_line() -> str:
    """Return the innermost line of the user's on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if not is_framework(str(frame.f_globals.get("__name__", ""))):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def method_line(owner: type, name: str) -> str:
    """Return the line where a method of a class begins; empty if it is not the user's."""
    method = inspect.unwrap(getattr(owner, name, None) or (lambda: None))
    code = getattr(method, "__code__", None)
    if code is None or is_framework(str(getattr(method, "__module__", ""))) or code.co_name == "<lambda>":
        return ""
    return place(code.co_filename, code.co_firstlineno)


def class_line(owner: type) -> str:
    """Return the line where a class begins; empty if it is a framework's, or its source is not there."""
    if is_framework(owner.__module__):
        return ""
    try:
        return place(inspect.getfile(owner), inspect.getsourcelines(owner)[1])
    except (OSError, TypeError):
        return ""


def attribute_line(value: Any, path: str, hooks: bool = False) -> str:
    """Return the line that assigns an attribute, such as that of ``encoder.scale`` in the class of the encoder.

    Args:
        value: the object, often a module.
        path: of the attribute below it, with dots.
        hooks: look only at methods other than ``__init__``.

    Returns:
        The place of the deepest part of the path that a class of the user assigns; empty if there is none.
    """
    found = ""
    for name in path.split("."):
        found = next((at for at, _ in assignments(type(value), name, hooks)), found)
        if isinstance(value, nn.Module) and name in value._modules:
            value = value._modules[name]
        elif hasattr(value, name):
            value = getattr(value, name)
        else:
            break
    return found


def assignments(owner: type, name: str, hooks: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the places where methods of a class assign ``self.NAME``, each with the method's name.

    Args:
        owner: the class; those that it inherits from are looked at, too.
        name: of the attribute.
        hooks: leave out ``__init__``.
    """
    for base in owner.__mro__:
        if is_framework(base.__module__):
            continue
        try:
            lines, first = inspect.getsourcelines(base)
            file = inspect.getfile(base)
        except (OSError, TypeError):
            continue
        for method in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
            if not isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) or (hooks and method.name == "__init__"):
                continue
            for node in ast.walk(method):
                if _changes(node, name):
                    yield place(file, first + node.lineno - 1), method.name  # type: ignore[attr-defined]


_CHANGING = ("append", "extend", "add", "update", "insert", "pop", "clear", "setdefault", "remove", "popleft")


def _changes(node: ast.AST, name: str) -> bool:
    """Return whether a statement assigns ``self.NAME``, a part of it, registers it, or calls what changes it."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = [part for target in node.targets for part in getattr(target, "elts", [target])]
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        targets = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr.startswith("register_") and _is_self(node.func.value):
            return bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == name
        if node.func.attr in _CHANGING:
            targets = [node.func.value]
    for target in targets:
        while isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Attribute) and target.attr == name and _is_self(target.value):
            return True
    return False


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
