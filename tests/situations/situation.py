"""A situation that has to end right, or with an error that says what to do, under each strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RIGHT = "right"

STRATEGIES = ("ddp", "horovod", "deepspeed_stage_2", "deepspeed_stage_3")
"""The columns of the table. Ray's workers run the same strategies; tests of launchers cover what differs there."""

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Arguments of a trainer that writes nothing."""


@dataclass(frozen=True)
class Situation:
    """Something that users do, and how it ends under each strategy with two workers.

    Attributes:
        name: the row of the table, as a user would say it.
        run: takes the name of a strategy, trains with two workers, and asserts the right values. Where the outcome is
            an error it lets the error out.
        outcomes: by strategy, ``"right"``, or the name of the error's class followed by a part of its message. A
            strategy that is left out does not apply; ``"-"`` says so in the table.
    """

    name: str
    run: Callable[[str], None]
    outcomes: dict[str, str]


def everywhere(outcome: str = RIGHT, **others: str) -> dict[str, str]:
    """Return the same outcome for all strategies, but for those that are named."""
    return {**dict.fromkeys(STRATEGIES, outcome), **others}
