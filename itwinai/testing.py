"""For tests of your own module: every check of `itwinai check` as a test of pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from itwinai.checks.registry import choose

if TYPE_CHECKING:
    import lightning as L

    from itwinai.checks.checker import Checker

Test = TypeVar("Test", bound=Callable[..., Any])


class NamedCheck:
    """One check of a module, which a test calls.

    Args:
        name: of the check.
        checker: makes what runs the checks, which all checks of a test function share.
    """

    def __init__(self, name: str, checker: Callable[[], Checker]) -> None:
        self.name = name
        self._checker = checker

    def __call__(self) -> None:
        """Run the check.

        Raises:
            AssertionError: it fails; the message says why, where, and what to change.
            pytest.skip.Exception: it is not applicable.
            pytest.xfail.Exception: it is expected to fail, and does.
        """
        import pytest

        result = self._checker().result(self.name)
        if result.status == "fail":
            raise AssertionError(f"{self.name}: {result.text}")
        if result.status == "expected failure":
            pytest.xfail(result.text)
        if result.status == "not applicable":
            pytest.skip(result.text)

    def __repr__(self) -> str:
        return self.name


def parametrize_with_checks(
    make: Callable[[], tuple[L.LightningModule, Any]],
    expected_failures: Mapping[str, str] | None = None,
    *,
    checks: Iterable[str] | None = None,
    strategies: Sequence[str] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 42,
) -> Callable[[Test], Test]:
    """Decorate a test function so that it runs once for each check of a module.

    The function has an argument ``check`` and calls it::

        @parametrize_with_checks(lambda: (MyModule(), MyDataModule()))
        def test_module(check):
            check()

    Args:
        make: returns a module and its data, as for `itwinai.check`; it is called for every run.
        expected_failures: reasons by the names of checks that are known to fail; such a test fails when it passes.
        checks: names of the checks; by default all.
        strategies: names of the strategies to compare; by default all that are installed.
        trainer: arguments of the trainer that change numbers.
        seed: of each run.

    Raises:
        ConfigurationError: there is no check of a name.
    """
    import pytest

    made: list[Checker] = []
    chosen = choose(checks)
    choose([*(expected_failures or {})] or None)

    def checker() -> Checker:
        if not made:
            from itwinai.checks.checker import Checker
            from itwinai.checks.subject import MadeObjects

            made.append(Checker(MadeObjects(make, trainer or {}, seed), strategies, expected_failures))
        return made[0]

    return pytest.mark.parametrize("check", [NamedCheck(one.name, checker) for one in chosen], ids=repr)
