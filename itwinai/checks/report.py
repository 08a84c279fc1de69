"""What the checks of a module have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "not applicable", "expected failure"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: of the check.
        status: ``pass``; ``fail``; ``not applicable``, with the reason in ``cause``; or ``expected failure``.
        cause: what is wrong, or why the check says nothing here.
        mend: what to change; empty unless it failed.
        at: the place in your code, as ``model.py:12``; empty where it is not known.
        detail: what a check that passed has looked at.
        seconds: that it took; runs that other checks look at too count for the first.
    """

    name: str
    status: Status
    cause: str = ""
    mend: str = ""
    at: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """Cause, place and mend as one paragraph."""
        place = f"{self.at}: " if self.at else ""
        return f"{place}{self.cause}{' ' if self.cause and self.mend else ''}{self.mend}"


@dataclass(frozen=True)
class CheckReport:
    """The results of all checks that were run.

    Attributes:
        results: one for each check, in the order in which they ran.
        seconds: that all of it took.
    """

    results: Sequence[CheckResult]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no check is red."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the checks that are red."""
        return [result.name for result in self.results if result.status == "fail"]

    def __getitem__(self, name: str) -> CheckResult:
        return self.by_name[name]

    @property
    def by_name(self) -> Mapping[str, CheckResult]:
        """The results by the names of the checks."""
        return {result.name: result for result in self.results}

    def raise_if_failed(self) -> None:
        """Raise an error that names every red check.

        Raises:
            AssertionError: a check is red.
        """
        red = [f"{result.name}: {result.text}" for result in self.results if result.status == "fail"]
        if red:
            raise AssertionError("\n".join(red))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as ``--json`` writes them."""
        return {"ok": self.ok, "seconds": round(self.seconds, 1), "checks": [asdict(one) for one in self.results]}

    def __str__(self) -> str:
        return "\n".join(f"{one.name}: {one.status}{f' ({one.text})' if one.text else ''}" for one in self.results)
