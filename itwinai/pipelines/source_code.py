"""The code that a step runs: its function, what that uses of the same packages and folders, and whose packages.

The files are read, and nothing is imported. What counts is found from the function on: the definitions that it mentions
by name, those that these mention, in other modules of the user too, and the statements of these modules that are no
definitions. Comments and layout do not count. Where names are computed (``globals()``, ``import_module(name)``), all of
the module or of its package counts.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itwinai.pipelines.content_hash import digest_of

WHOLE = "*"
"""In the place of a definition: all of a module."""

_OWN, _NEUTRAL = "itwinai", "itwinai.pipelines"
_DYNAMIC = ("globals", "vars", "eval", "exec", "modules")
_IMPORTERS = ("import_module", "__import__")


@dataclass
class _Module:
    """A module of the user's, read.

    Attributes:
        name: of the module.
        package: against which its relative imports are.
        file: of the module.
        definitions: functions and classes, by name.
        imported: what a name stands for: a module, and a name in it or nothing for the module itself.
        body: all other statements, which run whenever it is imported; also decorated definitions.
        is_dynamic: whether it computes names.
    """

    name: str
    package: str
    file: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    body: list[ast.stmt] = field(default_factory=list)
    is_dynamic: bool = False


@dataclass
class SourceCode:
    """Reads modules, each once."""

    _modules: dict[str, _Module | None] = field(default_factory=dict)
    _places: dict[str, list[Path] | None] = field(default_factory=dict)

    def of(self, paths: Iterable[str]) -> tuple[dict[str, str], set[str]]:
        """Return the digests of the user's code behind functions and classes, and the packages of others it imports.

        Args:
            paths: ``module.name`` of functions and classes; ``module.*`` for all of a module.

        Returns:
            Digests by ``module:definition``, with nothing behind the colon for the statements between; and names of
            top-level packages.
        """
        found: dict[str, str] = {}
        packages: set[str] = set()
        waiting = [(one.rpartition(".")[0], one.rpartition(".")[2]) for one in paths]
        seen: set[tuple[str, str]] = set()
        while waiting:
            need = waiting.pop()
            if need in seen:
                continue
            seen.add(need)
            name, wanted = need
            module = self._module(name)
            if module is None:
                top = name.partition(".")[0]
                if (
                    top
                    and top not in sys.stdlib_module_names
                    and not f"{name}.{wanted}.".startswith(f"{_NEUTRAL}.")
                    and self._where(top) is None
                ):
                    packages.add(top)
                continue
            waiting += [(parent, "") for parent in _parents(name)]
            if module.file.suffix != ".py":  # an extension
                found[f"{name}:"] = digest_of(module.file.read_bytes().hex())
                continue
            if f"{name}:" not in found:
                found[f"{name}:"] = _digest(module.body)
                waiting += self._mentions(module, module.body)
                waiting += [one for pairs in _unused(module) for one in pairs]
            if module.is_dynamic or wanted == WHOLE:
                chosen = [*module.definitions]
                waiting += [one for pairs in module.imported.values() for one in pairs]
            elif wanted in module.definitions:
                chosen = [wanted]
            else:
                chosen = ["__getattr__"] if wanted and "__getattr__" in module.definitions else []
                waiting += module.imported.get(wanted, [])
                if wanted and self._module(f"{name}.{wanted}") is not None:
                    waiting.append((f"{name}.{wanted}", WHOLE))
            for one in chosen:
                if f"{name}:{one}" not in found:
                    found[f"{name}:{one}"] = _digest(module.definitions[one])
                    waiting += self._mentions(module, module.definitions[one])
        return dict(sorted(found.items())), packages

    def files(self, paths: Iterable[str]) -> list[Path]:
        """Return the files of the user's code behind functions and classes; see `of`."""
        names = {one.partition(":")[0] for one in self.of(paths)[0]}
        return sorted({module.file for name in names if (module := self._modules[name]) is not None})

    def _mentions(self, module: _Module, nodes: Sequence[ast.stmt]) -> list[tuple[str, str]]:
        """Return what statements use: names of their module, of imported ones, and what they import themselves."""
        found: list[tuple[str, str]] = []
        attributes: set[int] = set()
        for node in (one for top in nodes for one in _walk(top)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                attributes.add(id(node.value))
                found += self._use(module, node.value.id, node.attr)
            elif isinstance(node, ast.Name) and id(node) not in attributes:
                found += self._use(module, node.id, WHOLE)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if node.value in module.definitions:  # an annotation in quotes, or getattr
                    found.append((module.name, node.value))
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                found += [one for pairs in _bindings(node, module.package).values() for one in pairs]
            elif isinstance(node, ast.Call) and _name_of(node.func) in _IMPORTERS:
                found += self._computed(module, node)
        return found

    def _use(self, module: _Module, name: str, attribute: str) -> list[tuple[str, str]]:
        if name in module.definitions:
            return [(module.name, name)]
        found = []
        for other, inside in module.imported.get(name, ()):
            if inside and self._module(f"{other}.{inside}") is None:
                found.append((other, inside))  # a function or class
            else:
                found.append((f"{other}.{inside}" if inside else other, attribute))
                found.append((other, ""))
        return found

    def _computed(self, module: _Module, call: ast.Call) -> list[tuple[str, str]]:
        """Return what a call imports: one module, or, if that is computed, all of the package."""
        given = call.args[0] if call.args else None
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            text = given.value
            return [(importlib.util.resolve_name(text, module.package) if text[:1] == "." else text, WHOLE)]
        depth = module.name.count(".") + (module.file.name == "__init__.py")
        if not depth:
            return [(module.name, WHOLE)]
        root, top = module.file.parents[depth - 1], module.name.partition(".")[0]
        return [
            (".".join([top, *one.relative_to(root).with_suffix("").parts]).removesuffix(".__init__"), WHOLE)
            for one in sorted(root.rglob("*.py"))
        ]

    def _module(self, name: str) -> _Module | None:
        """Return a module of the user's, read; None for what is none."""
        if name not in self._modules:
            top = name.partition(".")[0]
            places = None if not name or top in sys.stdlib_module_names else self._where(top)
            file = None if places is None else _file_of(name, places)
            self._modules[name] = None if file is None else _read(name, file)
        return self._modules[name]

    def _where(self, top: str) -> list[Path] | None:
        """Return where a top-level module of the user's is; None if it is of an installed package, or not there."""
        if top not in self._places:
            self._places[top] = None if top == _OWN else _users_places(top)
        return self._places[top]


def _read(name: str, file: Path) -> _Module:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    module = _Module(name, package, file)
    if file.suffix != ".py":
        return module
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # the step will say so
        module.body = [ast.Expr(ast.Constant(file.read_bytes()))]
        return module
    for node in _statements(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            module.definitions.setdefault(node.name, []).append(node)
            if node.decorator_list:  # which may register it
                module.body.append(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for bound, pairs in _bindings(node, package).items():
                module.imported.setdefault(bound, []).extend(pairs)
        else:
            module.body.append(node)
    module.is_dynamic = any(_name_of(node) in _DYNAMIC for node in ast.walk(tree) if isinstance(node, ast.expr))
    return module


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, without what only type checkers see."""
    for node in body:
        if isinstance(node, ast.If) and _name_of(node.test) == "TYPE_CHECKING":
            yield from _statements(node.orelse)
        else:
            yield node


def _bindings(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, list[tuple[str, str]]]:
    """Return what the names stand for that an import binds."""
    found: dict[str, list[tuple[str, str]]] = {}
    if isinstance(node, ast.Import):
        for one in node.names:
            bound = one.asname or one.name.partition(".")[0]
            # `import a.b` binds a, through which all of a.b is reached.
            found[bound] = [(one.name, "")] if one.asname or "." not in one.name else [(one.name, WHOLE)]
        return found
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    for one in node.names:
        found[one.asname or one.name] = [(base, one.name)]
    return found


def _unused(module: _Module) -> Iterator[list[tuple[str, str]]]:
    """Yield what a module imports and names nowhere, or with a star: for what the import does."""
    mentioned = {
        node.id
        for nodes in [module.body, *module.definitions.values()]
        for top in nodes
        for node in ast.walk(top)
        if isinstance(node, ast.Name)
    }
    for name, pairs in module.imported.items():
        if name not in mentioned:
            yield pairs


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all in it, without what only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _name_of(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _walk(other)
        else:
            yield from _walk(child)


def _name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _digest(nodes: Sequence[ast.stmt]) -> str:
    return digest_of("\n".join(map(ast.dump, nodes)))


def _users_places(top: str) -> list[Path] | None:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # __main__
        return None
    if spec is None:
        return None
    places = [Path(one) for one in spec.submodule_search_locations or ()] or [Path(spec.origin or "")]
    library = [sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    for place in places:
        text = str(place.resolve())
        if {"site-packages", "dist-packages"} & set(place.parts) or any(text.startswith(one) for one in library):
            return None
    return places


def _file_of(name: str, places: Sequence[Path]) -> Path | None:
    """Return the file of a module; None for what is no module, or a folder without code of its own."""
    parts = name.split(".")[1:]
    for place in places:
        if not parts:
            file = place / "__init__.py" if place.is_dir() else place
            if file.exists():
                return file
            continue
        if not place.is_dir():
            continue
        base = place.joinpath(*parts)
        for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if file.exists():
                return file
        if base.parent.is_dir() and (extensions := sorted(base.parent.glob(f"{base.name}.*.so"))):
            return extensions[0]
    return None


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
