"""Two commands."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Greet."""
    loaded = sorted({"torch", "lightning"} & set(sys.modules))
    print(f"hello {' '.join(arguments)} {loaded}")
    return 3 if arguments else 0


def refuse(arguments: list[str]) -> int:
    """Raise an error of itwinai."""
    from itwinai.errors import ConfigurationError

    raise ConfigurationError(f"no thanks to {arguments[0]}")
