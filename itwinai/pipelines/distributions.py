"""Which installed distributions code depends on, and their versions."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Mapping, Sequence

_BEHIND = {"lightning": ("torch",), "itwinai": ("torch", "lightning")}
"""Distributions that decide about numbers behind others."""


class Distributions:
    """Versions of distributions; which has which package is looked up once."""

    def __init__(self) -> None:
        self._names: Mapping[str, Sequence[str]] | None = None

    def versions(self, packages: Iterable[str], more: Iterable[str] = ()) -> dict[str, str]:
        """Return the versions of the distributions of packages, and of Python, by name.

        Args:
            packages: names by which they are imported.
            more: names of distributions.
        """
        if self._names is None:
            self._names = importlib.metadata.packages_distributions()
        packages = list(packages)
        names = {one for package in packages for one in self._names.get(package, ())} | set(more)
        names |= {one for package in packages for one in _BEHIND.get(package, ())}
        found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
        return {**found, **{name.lower(): self.version(name) for name in sorted(names)}}

    def version(self, name: str) -> str:
        """Return the version of a distribution."""
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"
