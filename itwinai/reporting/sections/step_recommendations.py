"""What to do about the time of a training step, with the figures that say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from itwinai.profiling.step_timer import Phase, StepSplit
from itwinai.reporting.formatting import percent_text, time_text
from itwinai.reporting.recommendation import Recommendation, recommend

FEWEST = 20
"""Steps below which nothing is concluded: a single one that was disturbed would decide."""

HAND_OVER = 5e-4
"""Seconds that it takes the training process to get a batch from a worker of the DataLoader (measured: 0.3 to 0.5 ms
of its own time for two small tensors). Batches that are read faster than this come no sooner from workers."""

SLOW_START = 0.05
"""Seconds until the first batch of an epoch below which the start of an epoch is not mentioned."""


@dataclass(frozen=True)
class Setting:
    """What the advice depends on beside the times.

    Attributes:
        loader_workers: ``num_workers`` of the training DataLoader; None if there is no such loader.
        keeps_workers: its ``persistent_workers``.
        pins_memory: whether that loader pins its memory.
        cores: that each training worker of this node has, its share of those that it has in common with others.
        on_gpu: whether the model is on a GPU.
        log_every_n_steps: of the trainer.
        batch_size: samples in a batch of one worker, if known.
        accumulate_grad_batches: batches per optimizer step.
        later_epochs: epochs after the first one.
        epoch_start: mean seconds in those until the first batch was there.
    """

    loader_workers: int | None = None
    keeps_workers: bool = False
    pins_memory: bool = False
    cores: int = 8
    on_gpu: bool = False
    log_every_n_steps: int = 50
    batch_size: int | None = None
    accumulate_grad_batches: int = 1
    later_epochs: int = 0
    epoch_start: float = 0.0


@dataclass(frozen=True)
class _Steps:
    """What the rules look at: the times of all workers, by rank, and what else matters."""

    splits: Sequence[StepSplit]
    setting: Setting

    def mean_share(self, phase: Phase) -> float:
        """Return the share of a step that a phase takes, as a mean of all workers."""
        return sum(split.share(phase) for split in self.splits) / len(self.splits)


def too_few(splits: Sequence[StepSplit]) -> str:
    """Return why no advice can be given, or an empty text if it can."""
    least = min((split.steps for split in splits), default=0)
    steps = "1 step was" if least == 1 else f"{least} steps were"
    return "" if least >= FEWEST else f"what could be better: only {steps} timed; it needs {FEWEST} for any advice"


def advise(splits: Sequence[StepSplit], setting: Setting) -> list[str]:
    """Return what to do next, what matters most first; nothing if nothing stands out, or too few steps were timed.

    Args:
        splits: the times of all workers, by rank.
        setting: what else matters.
    """
    if too_few(splits):
        return []
    rules = (_data, _epoch_start, _slowest, _communication, _transfer, _overhead, _between, _small_steps)
    return recommend(_Steps(splits, setting), *rules)


_CHEAPER = "make a sample cheaper to read (decode and transform beforehand, a faster file format, the node's own disk)"


def _data(steps: _Steps) -> Iterator[Recommendation]:
    slowest = max(steps.splits, key=lambda split: split.share(Phase.DATA))
    share = slowest.share(Phase.DATA)
    if share >= 0.15:
        evidence, text = _about_loader(slowest.phases.get(Phase.DATA, 0.0), steps.setting)
        yield Recommendation(f"{percent_text(share)} of the step waits for data{evidence}", text, share)


def _about_loader(wait: float, setting: Setting) -> tuple[str, str]:
    """Return how the batches are read, and what to do about it.

    Args:
        wait: seconds in a step that wait for data.
        setting: what else matters.
    """
    workers, room = setting.loader_workers, _room(setting)
    cores = f"{setting.cores} core{'s' * (setting.cores > 1)}"
    if workers is None:
        return ", from a loader that is not a DataLoader", "Let it read ahead in the background."
    if workers:
        with_workers = f", with num_workers={workers}"
        if 2 * workers <= room:
            return with_workers, f"Try num_workers={2 * workers}, or {_CHEAPER}."
        return f"{with_workers}, and {cores} per training worker are too few for more", f"Try to {_CHEAPER}."
    if wait < HAND_OVER:
        return (
            f", but that is only {time_text(wait)}",
            "Workers of the DataLoader would take longer to hand a batch over. Make larger batches, or cut them from "
            "tensors in memory in one piece.",
        )
    says = ": num_workers is 0, so training waits while each batch is read"
    if room:
        return says, f"Try DataLoader(num_workers={min(room, 8)}, persistent_workers=True)."
    return (
        f"{says}, and {cores} per training worker leave none for workers of the DataLoader",
        f"Request more, or {_CHEAPER}.",
    )


def _room(setting: Setting) -> int:
    """Return how many workers of the DataLoader the cores of each training worker have room for.

    One core is the training's own. A single other one is enough beside a GPU; on the CPU the training computes on both.
    """
    room = setting.cores - 1
    return room if setting.on_gpu or room > 1 else 0


def _epoch_start(steps: _Steps) -> Iterator[Recommendation]:
    setting, first = steps.setting, steps.splits[0]
    workers = setting.loader_workers
    if not workers or setting.keeps_workers or not setting.later_epochs:
        return
    spent = setting.later_epochs * setting.epoch_start
    share = spent / (spent + first.steps * (first.step + first.between))
    if share >= 0.03 and setting.epoch_start >= SLOW_START:
        yield Recommendation(
            f"Workers of the DataLoader start again in each epoch (num_workers={workers}): "
            f"{time_text(setting.epoch_start)} until the first batch, {time_text(spent)} in all "
            f"{setting.later_epochs} epochs after the first",
            "With DataLoader(persistent_workers=True) they start once.",
            share,
        )


def _slowest(steps: _Steps) -> Iterator[Recommendation]:
    splits = steps.splits
    if len(splits) < 2 or any(split.communication is None for split in splits):
        return
    work = [own_work(split) for split in splits]
    rank, slowest = max(enumerate(work), key=lambda item: item[1])
    typical = median(work[:rank] + work[rank + 1 :])
    if typical > 0 and slowest >= 1.15 * typical and slowest - typical >= 0.05 * splits[rank].step:
        yield Recommendation(
            f"Rank {rank} is the slowest: {time_text(slowest)} of own work per step, and the others "
            f"{time_text(typical)} (median), so they wait for it",
            "Look for an uneven share of data, a slower device, or other processes on its node.",
            (slowest - typical) / splits[rank].step,
        )


def _communication(steps: _Steps) -> Iterator[Recommendation]:
    # That of the worker that waits least: the others wait for it, and not for the network.
    share = min(split.share(Phase.COMMUNICATION) for split in steps.splits)
    if len(steps.splits) < 2 or share < 0.25:
        return
    overlap, accumulated = steps.splits[0].overlap, steps.setting.accumulate_grad_batches
    beside = f" ({percent_text(overlap)} of the exchange overlaps with computation)" if overlap else ""
    yield Recommendation(
        f"Waiting for other workers takes at least {percent_text(share)} of the step on every worker{beside}",
        f"Do more work per exchange: a larger batch per worker, or accumulate_grad_batches={2 * accumulated} (now "
        f"{accumulated}); or send less: gradient_compression='bf16' under ddp, compression='fp16' under horovod. Or "
        "use fewer workers.",
        share,
    )


def _transfer(steps: _Steps) -> Iterator[Recommendation]:
    share, setting = steps.mean_share(Phase.TRANSFER), steps.setting
    if share < 0.1:
        return
    if setting.on_gpu and not setting.pins_memory:
        what, text = "copies batches to the GPU", "Try DataLoader(pin_memory=True)."
    else:
        what, text = "brings batches to the device", "Look at transfer_batch_to_device and on_after_batch_transfer."
    yield Recommendation(f"{percent_text(share)} of the step {what}", text, share)


def _overhead(steps: _Steps) -> Iterator[Recommendation]:
    hooks, logging = steps.mean_share(Phase.CALLBACKS), steps.mean_share(Phase.LOGGING)
    if logging > 0.1:
        yield Recommendation(
            f"{percent_text(logging)} of the step hands metrics to the loggers: log_every_n_steps is "
            f"{steps.setting.log_every_n_steps}",
            "Raise it, or use a logger that writes in the background (--logger mlflow).",
            logging,
        )
    elif hooks > 0.1:
        yield Recommendation(
            f"{percent_text(hooks)} of the step is spent in hooks of callbacks and of the module",
            "Do less in them, or not in every step.",
            hooks,
        )


def _between(steps: _Steps) -> Iterator[Recommendation]:
    between = sum(split.between for split in steps.splits) / len(steps.splits)
    share = between / (between + sum(split.step for split in steps.splits) / len(steps.splits))
    if share >= 0.25:
        yield Recommendation(
            f"{percent_text(share)} of the time within epochs is spent between steps, in validation and checkpoints",
            "Validate less often (check_val_every_n_epoch, val_check_interval, limit_val_batches), or save less often.",
            share,
        )


def _small_steps(steps: _Steps) -> Iterator[Recommendation]:
    first, setting = steps.splits[0], steps.setting
    if first.step <= 2e-3 and setting.batch_size is not None and first.share(Phase.DATA) <= 0.5:
        yield Recommendation(
            f"A step takes only {time_text(first.step)}, most of it the fixed cost of calling operators",
            f"A batch size above {setting.batch_size} trains more samples per second, if the model's accuracy allows.",
            0.01,
        )


def own_work(split: StepSplit) -> float:
    """Return the seconds of a step in which a worker does not wait for others."""
    return split.step * (1 - split.share(Phase.COMMUNICATION))
