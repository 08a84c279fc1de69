"""The exceptions that itwinai raises where a caller may want to catch them.

Each message says what happened, why, and what to do next. The classes also derive from the built-in exception that
fits, so that code written for stock Lightning (``except ValueError``) keeps working.
"""

from __future__ import annotations


class ItwinaiError(Exception):
    """Base of every exception that itwinai raises itself."""


class ConfigurationError(ItwinaiError, ValueError):
    """What was asked for cannot be set up: unknown names, contradicting arguments, missing devices."""


class MissingPackageError(ItwinaiError, ImportError):
    """An optional package is not installed; the message holds its install line."""


class InstallError(ItwinaiError):
    """A package could not be built or installed."""


class PayloadError(ItwinaiError, TypeError):
    """The trainer, the module or the data cannot be sent to the workers."""


class ResourceError(ItwinaiError, RuntimeError):
    """The cluster cannot provide the workers that were asked for."""


class WorkerError(ItwinaiError, RuntimeError):
    """A worker process ended without a result: it was killed, or could not even start."""


class UnusedParametersError(ItwinaiError, RuntimeError):
    """Parameters got no gradient, and the strategy was not told to expect that."""


class LoggedKeysError(ItwinaiError, RuntimeError):
    """The workers have logged different keys, so that their values cannot be reduced."""


def require(package: str, install: str, needed_for: str) -> None:
    """Raise `MissingPackageError` unless a package can be imported.

    Args:
        package: import name of the package; it is looked up, not imported.
        install: the command line that installs it.
        needed_for: what the user asked for, as in ``strategy 'ray'``.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingPackageError(f"{needed_for} needs the package '{package}', which is not installed here. {install}")
