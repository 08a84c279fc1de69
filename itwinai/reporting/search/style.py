"""The colours of trials."""

from __future__ import annotations

from itwinai.reporting.plotting import FAILED, GOING_ON, GOOD, PLAIN, label_text
from itwinai.trials.records import Status

BY_STATUS: dict[Status, str] = {
    "stopped": PLAIN,
    "waiting": GOING_ON,
    "paused": GOING_ON,
    "running": GOING_ON,
    "failed": FAILED,
    "finished": GOOD,
}
"""Colours of the trials by status; later ones are drawn over earlier ones."""

lettering = label_text
"""The name that the pictures of a benchmark still import."""
