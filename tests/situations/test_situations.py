"""Each situation ends under each strategy as the documentation says."""

from __future__ import annotations

import re

import pytest

from tests.conftest import REPOSITORY
from tests.situations.registry import SITUATIONS, written_into
from tests.situations.situation import RIGHT, Situation

CASES = [
    pytest.param(situation, strategy, outcome, id=f"{situation.name}-{strategy}")
    for situations in SITUATIONS.values()
    for situation in situations
    for strategy, outcome in situation.outcomes.items()
]


@pytest.mark.parametrize(("situation", "strategy", "outcome"), CASES)
def test_ends_as_told(
    situation: Situation,
    strategy: str,
    outcome: str,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(str(tmp_path))
    if "logger" in situation.name:  # their threads forbid forks of this process
        request.getfixturevalue("shared_fork_server")
    if outcome == RIGHT:
        situation.run(strategy)
        return
    error, _, message = outcome.partition(" ")
    with pytest.raises(Exception, match=re.escape(message)) as raised:  # noqa: B017 - the class is checked by name
        situation.run(strategy)
    assert error in [cls.__name__ for cls in type(raised.value).__mro__]


def test_documentation_tells_of_all() -> None:
    """Mend it with ``python -m tests.situations.registry``."""
    page = (REPOSITORY / "docs/explanation/same-numbers.md").read_text()
    assert page == written_into(page)
