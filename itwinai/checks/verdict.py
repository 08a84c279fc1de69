"""How a check says that it is not content: it raises one of these."""

from __future__ import annotations


class CheckFailedError(Exception):
    """The module does not do what the check asks for.

    Args:
        cause: what is wrong.
        mend: what to change.
        at: the place in the user's code, as ``model.py:12``.
    """

    def __init__(self, cause: str, mend: str = "", at: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.mend = mend
        self.at = at


class NotApplicableError(Exception):
    """The check has nothing to say about this module; the message says why."""
