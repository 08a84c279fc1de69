"""What a run was, and in which environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itwinai.report.sections import Section, Table

if TYPE_CHECKING:
    from itwinai.facts.run import RunFacts


@dataclass(frozen=True)
class Course:
    """How a fit went.

    Attributes:
        module: the class that was trained.
        end: "finished", or the error that ended it.
        seconds: from the start of training to its end.
        epochs: epochs of this fit.
        steps: optimizer steps of the module, those before a resume included.
        batches: batches of this fit, on each worker.
        samples: samples of this fit, on all workers; None where the batch size is not known.
        checkpoint: path of the best or last checkpoint, if there is one.
        is_best: whether it is the best by some metric, and not just the last.
    """

    module: str
    end: str
    seconds: float
    epochs: int
    steps: int
    batches: int
    samples: int | None
    checkpoint: str
    is_best: bool


def run_section(course: Course, facts: RunFacts, places: Sequence[str]) -> Section:
    """Return how a fit went, and where things are.

    Args:
        course: how it went.
        facts: where it ran.
        places: where its loggers wrote to.
    """
    launch = facts.launch
    workers = f"{launch.world_size} worker{'s' * (launch.world_size > 1)}"
    nodes = f" on {launch.nodes} nodes" if launch.nodes > 1 else ""
    told = {
        "run": f"{course.module} with {launch.strategy}, {workers}{nodes} ({launch.device}), {course.end}",
        "trained": f"{course.epochs} epochs, {course.steps} steps in {duration(course.seconds)}",
    }
    if course.samples and course.seconds:
        told["samples"] = f"{course.samples:,}, {course.samples / course.seconds:,.0f} per second, validation included"
    if course.checkpoint:
        told["best checkpoint" if course.is_best else "last checkpoint"] = course.checkpoint
    for number, place in enumerate(places):
        told["logged to" if number == 0 else f"logged to ({number + 1})"] = place
    return Section("Run", told)


def environment_section(facts: RunFacts, config: str) -> Section:
    """Return the environment of a run, for the page.

    Args:
        facts: the facts.
        config: the configuration, as YAML without secrets.
    """
    rows = [(name, str(value)) for name, value in facts.flat().items() if value not in (None, "")]
    tables = [Table(("what", "value"), rows, "Environment")]
    if config:
        tables.append(Table(("configuration",), [(config,)], "Configuration"))
    return Section("Environment", tables=tables)


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
