"""When a trial reports: at the end of validations, of epochs, or every n steps."""

from __future__ import annotations

import re

from itwinai.errors import ConfigurationError, did_you_mean

_STEPS = re.compile(r"\s*(\d+)\s*steps?\s*")


def parse_moment(on: str) -> tuple[str, int | None]:
    """Return when to report, and after how many steps if that is counted in steps.

    Args:
        on: ``validation``, ``epoch``, or ``500steps``.

    Raises:
        ConfigurationError: it is not one of these.
    """
    if on in ("validation", "epoch"):
        return on, None
    if (found := _STEPS.fullmatch(on)) is not None and int(found[1]) > 0:
        return "steps", int(found[1])
    hint = did_you_mean(on, ("validation", "epoch"))
    raise ConfigurationError(
        f"on={on!r} is not a moment to report at; write 'validation', 'epoch' or '500steps'.{hint}"
    )
