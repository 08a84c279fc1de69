"""What a run was, and in which environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import count_text, percent_text, span_text
from itwinai.reporting.sections import Section, Table

if TYPE_CHECKING:
    from itwinai.run_info.run import RunFacts


@dataclass(frozen=True)
class TimeSplit:
    """What the time of a fit went into, in seconds.

    Attributes:
        training: its training batches, without those that torch's profiler recorded; None where nothing timed them.
        recorded: the batches that torch's profiler recorded, and writing its traces.
        validation: from the start of each validation to its end.
        timed_batches: the number of batches that ``training`` is the time of.
    """

    training: float | None
    recorded: float
    validation: float
    timed_batches: int

    def shares(self, seconds: float) -> dict[str, float]:
        """Return the shares of a fit of this many seconds, by phase."""
        known = {"recording operators": self.recorded, "validation": self.validation}
        if self.training is not None:
            known = {"training": self.training, **known}
        rest = max(seconds - sum(known.values()), 0.0)
        known["checkpoints and other" if self.training is not None else "training and all else"] = rest
        whole = sum(known.values())
        return {name: spent / whole for name, spent in known.items()} if whole else {}


@dataclass(frozen=True)
class RunTimes:
    """How a fit went.

    Attributes:
        module: the class that was trained.
        end: "finished", or the error that ended it.
        seconds: from the start of training to its end.
        epochs: epochs of this fit.
        steps: optimizer steps of the module, those before a resume included.
        batches: batches of this fit, on each worker.
        samples: samples of this fit, on all workers; None where the batch size is not known.
        unknown_samples: why it is not.
        time: what the seconds went into.
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
    unknown_samples: str
    time: TimeSplit
    checkpoint: str
    is_best: bool

    def per_second(self, number: int) -> tuple[float, str] | None:
        """Return how many of something that comes with batches were trained with per second, and of which time.

        Args:
            number: of it, in all batches.
        """
        time = self.time
        if time.training and time.timed_batches and self.batches:
            return number / self.batches * time.timed_batches / time.training, "in training batches"
        seconds = self.seconds - time.validation
        return (number / seconds, "with validation left out") if seconds > 0 else None


def run_section(times: RunTimes, facts: RunFacts, places: Sequence[str]) -> Section:
    """Return how a fit went, and where things are.

    Args:
        times: how it went.
        facts: where it ran.
        places: where its loggers wrote to.
    """
    launch = facts.launch
    workers = count_text(launch.world_size, "worker")
    nodes = f" on {launch.nodes} nodes" if launch.nodes > 1 else ""
    entries = {
        "run": f"{times.module} with {launch.strategy}, {workers}{nodes} ({launch.device}), {times.end}",
        "trained": f"{count_text(times.epochs, 'epoch')}, {count_text(times.steps, 'step')} in "
        f"{span_text(times.seconds)}",
    }
    missing = []
    entries |= _speed(times)
    if times.batches and times.samples is None:
        missing.append(f"the number of samples: {times.unknown_samples}")
    shares = times.time.shares(times.seconds)
    if times.batches and shares:
        entries["time"] = ", ".join(f"{name} {percent_text(share)}" for name, share in shares.items() if share >= 0.005)
    if times.checkpoint:
        entries["best checkpoint" if times.is_best else "last checkpoint"] = times.checkpoint
    for number, place in enumerate(places):
        entries["logged to" if number == 0 else f"logged to ({number + 1})"] = place
    return Section("Run", entries, missing=missing)


def _speed(times: RunTimes) -> dict[str, str]:
    """Return the samples and how many of them went by per second, or the same of batches where they are unknown."""
    what, number = ("samples", times.samples) if times.samples else ("batches", times.batches)
    if not number:
        return {}
    speed = times.per_second(number)
    return {what: f"{number:,}" + (f", {speed[0]:,.0f} per second {speed[1]}" if speed else "")}


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
