"""Rules speak only where their condition holds, and what matters most comes first."""

from __future__ import annotations

from collections.abc import Iterator

from itwinai.reporting.recommendation import Recommendation, recommend


def slow(share: float) -> Iterator[Recommendation]:
    if share > 0.5:
        yield Recommendation(f"{share:.0%} is slow", "Make it faster.", weight=share)


def always(share: float) -> Iterator[Recommendation]:
    yield Recommendation("It ran", "Run it again.", weight=0.6)
    yield Recommendation("It ended", "Stop.", weight=0.6)


def test_what_matters_most_comes_first_and_equals_keep_their_order() -> None:
    assert recommend(0.9, always, slow) == ["90% is slow. Make it faster.", "It ran. Run it again.", "It ended. Stop."]
    assert recommend(0.4, slow) == []
