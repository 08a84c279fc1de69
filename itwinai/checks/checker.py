"""`check`: run the named checks on a module."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning as L

from itwinai.checks.processes import RunFailedError
from itwinai.checks.registry import CHECKS, Check, choose
from itwinai.checks.report import CheckReport, CheckResult
from itwinai.checks.session import LIMIT, Session, installed_strategies
from itwinai.checks.subject import GivenObjects, Subject
from itwinai.checks.verdict import CheckFailedError, NotApplicableError
from itwinai.errors import ConfigurationError
from itwinai.strategies.registry import check_strategy_name
from itwinai.tracebacks import hides_framework_frames


class Checker:
    """Runs checks on one subject; runs are shared by all of them.

    Args:
        subject: what is checked.
        strategies: names of the strategies to compare; by default all that are installed.
        expected_failures: reasons by the names of checks that are known to fail.
        limit: seconds after which a single run is ended, and its check fails.
        doing: is told what begins.
        tick: called many times a second while a run is waited for.

    Raises:
        ConfigurationError: a name is unknown.
    """

    def __init__(
        self,
        subject: Subject,
        strategies: Sequence[str] | None = None,
        expected_failures: Mapping[str, str] | None = None,
        limit: float = LIMIT,
        doing: Callable[[str], None] = lambda text: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        for name in strategies or ():
            check_strategy_name(name)
        self.expected_failures = dict(expected_failures or {})
        choose([*self.expected_failures] or None)
        for name, reason in self.expected_failures.items():
            if not reason.strip():
                raise ConfigurationError(f"Say why '{name}' is expected to fail: the reason is empty.")
        self.session = Session(subject, strategies or installed_strategies(), limit, doing, tick)
        self._results: dict[str, CheckResult] = {}
        self._failed: dict[str, str] = {}  # names of checks that failed, or need one that did, each with that one

    def result(self, name: str) -> CheckResult:
        """Return the result of a check, which is run when it is first asked for, with those that it needs."""
        if name not in self._results:
            self._results[name] = self._run(CHECKS[name])
        return self._results[name]

    def close(self) -> None:
        """Remove the files of all runs."""
        self.session.close()

    def _run(self, check: Check) -> CheckResult:
        began = time.monotonic()

        def result(status: Any, **told: str) -> CheckResult:
            return CheckResult(check.name, status, **told, seconds=time.monotonic() - began)

        for need in check.needs:
            self.result(need)
            if need in self._failed:
                self._failed[check.name] = self._failed[need]
                return result("not applicable", cause=f"{self._failed[need]} has to pass first")
        reason = self.expected_failures.get(check.name)
        try:
            detail = check.run(self.session)
        except NotApplicableError as error:
            return result("not applicable", cause=str(error))
        except CheckFailedError as error:
            self._failed[check.name] = check.name
            if reason is not None:
                return result("expected failure", cause=f"{reason} ({error.cause})", at=error.at)
            return result("fail", cause=error.cause, mend=error.mend, at=error.at)
        except RunFailedError as error:  # a run that no check is about
            self._failed[check.name] = check.name
            return result("fail", cause=error.summary, at=error.at)
        if reason is not None:
            return result(
                "fail",
                cause=f"it passes, and is said to fail: {reason}.",
                mend="Remove it from the expected failures.",
            )
        return result("pass", detail=detail)


@hides_framework_frames
def check(
    module: L.LightningModule,
    data: Any = None,
    *,
    checks: Iterable[str] | None = None,
    strategies: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
    limit: float = LIMIT,
) -> CheckReport:
    """Run named checks on a module and its data: does it train, resume and evaluate alike, wherever it runs?

    Each run is a copy of this process that trains on a few batches on the CPU, and is ended when it takes too long.
    Module and data stay as they are, and nothing is written but to a temporary folder.

    Args:
        module: the module, as you would give it to ``trainer.fit``.
        data: a datamodule, a DataLoader, or a pair of loaders for training and validation; nothing if the module has
            its own. The batch size is taken for that of all workers together.
        checks: names of the checks to run; by default all. `itwinai check --list` lists them.
        strategies: names of the strategies to compare; by default all that are installed.
        expected_failures: reasons by the names of checks that are known to fail. They do not make the report red, until
            they pass.
        trainer: arguments of the trainer that change numbers, such as ``gradient_clip_val``, ``precision`` or
            ``accumulate_grad_batches``, and callbacks; the others are left out.
        seed: of each run.
        limit: seconds after which a single run is ended, and its check fails.

    Returns:
        The report: ``report.ok``, ``report["resume"].cause``, ``report.raise_if_failed()``.

    Raises:
        ConfigurationError: a name is unknown; or this process cannot be copied, and the module not be pickled.
    """
    subject = GivenObjects(module, data, trainer or {}, seed)
    return run_checks(subject, checks, strategies, expected_failures, limit)


def run_checks(
    subject: Subject,
    checks: Iterable[str] | None = None,
    strategies: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    limit: float = LIMIT,
    doing: Callable[[str], None] = lambda text: None,
    tick: Callable[[], None] = lambda: None,
    done: Callable[[CheckResult], None] = lambda result: None,
) -> CheckReport:
    """Run checks on a subject, and return the report.

    Args:
        subject: what is checked.
        checks: see `check`.
        strategies: see `check`.
        expected_failures: see `check`.
        limit: see `check`.
        doing: is told what begins.
        tick: called many times a second while a run is waited for.
        done: is given each result.

    Raises:
        ConfigurationError: a name is unknown.
    """
    began = time.monotonic()
    chosen = choose(checks)
    checker = Checker(subject, strategies, expected_failures, limit, doing, tick)
    results = []
    try:
        for one in chosen:
            results.append(checker.result(one.name))
            done(results[-1])
    finally:
        checker.close()
    return CheckReport(results, time.monotonic() - began)
