"""Let the packages `pytorch_lightning` and `lightning.pytorch` be one in this process.

They are two copies of the same code, so that a module that is created with one of them is foreign to a trainer of the
other. Packages that import `pytorch_lightning` train here once their imports find `lightning.pytorch` instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from itwinai.errors import ConfigurationError

VARIABLE = "ITWINAI_UNIFY_LIGHTNING"
"""Set to 1 it does the same for a process that does not call `unify_lightning`; worker processes have it so."""

_PACKAGES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


class _SameModule(Loader):
    """Gives a module that is there, or is imported under its own name, a second name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing, as it was executed before, but undo what the import system has put into it."""
        module.__spec__ = self.spec


class LightningFinder(MetaPathFinder):
    """Finds the modules of `lightning` under the names that they have in the separate packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module of `lightning` that a name of the separate packages stands for."""
        package, dot, rest = fullname.partition(".")
        if package not in _PACKAGES:
            return None
        name = f"{_PACKAGES[package]}{dot}{rest}"
        if find_spec(name) is None:
            return None
        return ModuleSpec(fullname, _SameModule(name), is_package=True)


def unify_lightning() -> None:
    """Let `pytorch_lightning` be `lightning.pytorch`, and `lightning_fabric` be `lightning.fabric`, from now on.

    Call it before anything imports the former; the workers of the script then do the same.

    Raises:
        ConfigurationError: one of them is imported already.
    """
    if not any(isinstance(finder, LightningFinder) for finder in sys.meta_path):
        imported = [name for name in _PACKAGES if name in sys.modules]
        if imported:
            raise ConfigurationError(
                f"Imported already: {', '.join(imported)}. Its classes would exist beside those of Lightning. Call "
                f"itwinai.unify_lightning() before that import, or set {VARIABLE}=1 for the whole process."
            )
        sys.meta_path.insert(0, LightningFinder())
    os.environ[VARIABLE] = "1"  # for worker processes


def unify_if_asked() -> None:
    """Do what `unify_lightning` does if the environment variable asks for it."""
    if os.environ.get(VARIABLE) == "1":
        unify_lightning()


def refuse_foreign(*objects: object) -> None:
    """Raise an error for objects whose classes are those of `pytorch_lightning`, or derived from them.

    Raises:
        ConfigurationError: there is one.
    """
    for one in objects:
        for cls in type(one).__mro__:
            package = cls.__module__.partition(".")[0]
            if package in _PACKAGES:
                raise ConfigurationError(
                    f"{type(one).__name__} uses the package {package}, a copy of {_PACKAGES[package]} with "
                    f"own classes, which this trainer does not support. Import {_PACKAGES[package]} instead; or, "
                    f"where another package imports {package}, let both be one: call itwinai.unify_lightning() before "
                    f"that package is imported, or set the environment variable {VARIABLE}=1."
                )
